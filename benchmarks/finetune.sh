#!/usr/bin/env bash
# The fine-tuning study: BERT-tiny pretrained and fine-tuned with eight patterns, and a published
# three-layer encoder with four.
#
#   FLASHMIX_DATA=FOLDER benchmarks/finetune.sh OUT [pretrain] [small] [minilm]
#
# FOLDER holds imdb_{train,test,unsup}.parquet and paraphrase-minilm-l3-v2. The same command again
# goes on where it was stopped (Ctrl-C, a kill, timeout) and repeats nothing. Environment:
#   SECONDS_EACH  of pretraining for each model and learning rate (60)
#   PRETRAIN_LR, LR, MINILM_LR  learning rates, of which validation chooses
#   SMALL, MINILM  the patterns; JOBS  trainings at a time (8)
#   EXTRA         further options of every command, for a trial: "--limit 200 --seq-len 64"
set -eu
trap 'exit 130' INT TERM  # which bash obeys once the command has saved its state
out=$1
shift
flashmix=${FLASHMIX:-flashmix}
vocabulary=$FLASHMIX_DATA/paraphrase-minilm-l3-v2
small=${SMALL:-'attention; fnet; spectral; spectral,attention; fnet(norm=ortho),attention; local(window=64); fourier; topk(topk=32)'}
minilm=${MINILM:-'attention; spectral*2,attention*1; local(window=64); fnet'}
jobs=${JOBS:-8}

run() { # FOLDER COMMAND OPTIONS...: begin, go on, or do nothing
  local folder=$out/$1 command=$2
  shift 2
  if ! [ -e "$folder/run.json" ]; then
    # shellcheck disable=SC2086
    $flashmix "$command" "$@" --jobs "$jobs" --threads 1 ${EXTRA:-} --out "$folder"
  elif grep -q '"finished": null' "$folder/run.json"; then
    $flashmix "$command" --resume "$folder"
  fi
}

for part in "${@:-pretrain small minilm}"; do
  for one in $part; do
    case $one in
      pretrain)
        run pretrain-imdb pretrain --arch bert-tiny --tokenizer "$vocabulary" --mixers "$small" \
          --lr "${PRETRAIN_LR:-1e-3,3e-3}" --seconds "${SECONDS_EACH:-60}" --check-every 2000 ;;
      small)
        run finetune-imdb-bert-tiny finetune --task imdb --model "$out/pretrain-imdb" \
          --mixers "$small" --lr "${LR:-3e-4,1e-3}" --seeds 3 ;;
      minilm)
        run finetune-imdb-minilm finetune --task imdb --model "$vocabulary" --mixers "$minilm" \
          --lr "${MINILM_LR:-1e-4,3e-4}" --seeds 3 ;;
      *) echo "unknown part $one: pretrain, small or minilm" >&2; exit 2 ;;
    esac
  done
done
