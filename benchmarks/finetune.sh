#!/usr/bin/env bash
# The fine-tuning study on one GPU: BERT-tiny pretrained and fine-tuned with eight patterns, and a
# published three-layer encoder. Usage: FLASHMIX_DATA=FOLDER benchmarks/finetune.sh OUT
# The folder holds imdb_{train,test,unsup}.parquet and paraphrase-minilm-l3-v2.
set -eu
out=$1
flashmix=${FLASHMIX:-flashmix}
seconds=${SECONDS_EACH:-60}
small='attention; fnet; spectral; fourier; local(window=64); topk(topk=32); spectral,attention; fnet(norm=ortho),attention'
minilm="$FLASHMIX_DATA/paraphrase-minilm-l3-v2"

$flashmix pretrain --arch bert-tiny --tokenizer "$minilm" --mixers "$small" --lr "${PRETRAIN_LR:-1e-3}" \
  --seconds "$seconds" --jobs 4 --threads 1 --check-every 2000 --out "$out/pretrain-imdb"
$flashmix finetune --task imdb --model "$out/pretrain-imdb" --mixers "$small" --lr "${LR:-1e-3}" \
  --seeds 3 --jobs 8 --threads 1 --out "$out/finetune-imdb-bert-tiny"
$flashmix finetune --task imdb --model "$minilm" --lr 1e-4 --seeds 3 --jobs 6 --threads 1 \
  --mixers 'attention; local(window=64); spectral*2,attention*1; fnet' --out "$out/finetune-imdb-minilm"
