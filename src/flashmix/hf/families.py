"""Families of transformers that the swap is tried with, each as a small model.

Which mixers a family takes is found by swapping that model; what stands here says how to build it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flashmix.hf.interface import transformers

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "embed_dim"), 16),
    **dict.fromkeys(("intermediate_size", "d_ff", "hidden_dim", "encoder_ffn_dim"), 32),
    "decoder_ffn_dim": 32,
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "n_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "embedding_size", "num_mel_bins"), 8),
    "vocab_size": 60,
    "pad_token_id": 1,
    "max_position_embeddings": 64,
    "decoder_layers": 1,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
"""What a small model has, as far as its config knows these names."""
WAVES: dict[str, Any] = {
    "conv_dim": (16, 16),
    "conv_kernel": (5, 3),
    "conv_stride": (3, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "num_feat_extract_layers": 2,
}
"""Few convolutions before the layers of a model of sound waves."""
FRAMES: dict[str, Any] = {"max_source_positions": 12}
"""Short spectrograms, which are padded to one length."""


@dataclass(frozen=True, eq=False)
class Family:
    """A family of models.

    Args:
        name: what people call it.
        model: its class in transformers.
        part: path of the submodel that is swapped; the model itself where it is empty.
        options: entries of its config in place of, or beside, those of ``SMALL``; None leaves one
            to the config.
    """

    name: str
    model: str
    part: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def encoder(self, model: nn.Module) -> Any:
        """What is swapped of ``model``, which :meth:`build` made."""
        return model.get_submodule(self.part) if self.part else model

    def exists(self) -> bool:
        """Whether the installed transformers has this model."""
        return self.model in dir(transformers())  # hasattr would import it

    def build(self) -> Any:
        """A small model with seeded random weights, in eval mode."""
        kind = getattr(transformers(), self.model)
        config = kind.config_class
        other, takes = config.attribute_map, inspect.signature(config).parameters
        entries = {other.get(k, k): v for k, v in SMALL.items() if other.get(k, k) in takes}
        entries |= {other.get(k, k): v for k, v in self.options.items()}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return kind(config(**{k: v for k, v in entries.items() if v is not None})).eval()


def _family(name: str, model: str, part: str = "", **options: Any) -> Family:
    return Family(name, model, part, options)


TEXTS = (
    _family("ALBERT", "AlbertModel"),
    _family("BERT", "BertModel"),
    _family("BERT for generation", "BertGenerationEncoder"),
    _family("BigBird", "BigBirdModel", attention_type="original_full"),
    _family("BLIP (text)", "BlipTextModel", is_decoder=False, encoder_hidden_size=16),
    _family("BROS", "BrosModel"),
    _family("CamemBERT", "CamembertModel"),
    _family("CANINE", "CanineModel", num_hash_buckets=16),
    _family("Chinese-CLIP (text)", "ChineseCLIPTextModel"),
    _family("CLAP (text)", "ClapTextModel"),
    _family("CLIP (text)", "CLIPTextModel"),
    _family("ConvBERT", "ConvBertModel"),
    _family("Data2Vec (text)", "Data2VecTextModel"),
    _family("DeBERTa", "DebertaModel", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _family(
        "DeBERTa-v2, DeBERTa-v3",
        "DebertaV2Model",
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
    ),
    _family("DistilBERT", "DistilBertModel"),
    _family("DPR", "DPRQuestionEncoder"),
    _family("ELECTRA", "ElectraModel"),
    _family("ERNIE", "ErnieModel"),
    _family("ESM-1", "EsmModel", position_embedding_type="absolute", mask_token_id=2),
    _family("ESM-2", "EsmModel", position_embedding_type="rotary", mask_token_id=2),
    _family("ESM-C", "EsmcModel"),
    _family("EuroBERT", "EuroBertModel", num_key_value_heads=1),
    _family("FlauBERT", "FlaubertModel"),
    _family("FLAVA (text)", "FlavaTextModel"),
    _family("FNet", "FNetModel"),
    _family(
        "Funnel",
        "FunnelBaseModel",
        num_hidden_layers=None,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_head=8,
        d_inner=32,
    ),
    _family("GTE", "GteModel"),
    _family("I-BERT", "IBertModel"),
    _family("Jina v3", "JinaEmbeddingsV3Model"),
    _family("LayoutLM", "LayoutLMModel", max_2d_position_embeddings=64),
    _family("LiLT", "LiltModel", channel_shrink_ratio=2, max_2d_position_embeddings=64),
    _family("Longformer", "LongformerModel", attention_window=4),
    _family("LUKE", "LukeModel", entity_vocab_size=8, entity_emb_size=8),
    _family(
        "MarkupLM",
        "MarkupLMModel",
        max_xpath_tag_unit_embeddings=8,
        max_xpath_subs_unit_embeddings=8,
        tag_pad_id=0,
        subs_pad_id=0,
        xpath_unit_hidden_size=4,
        max_depth=4,
    ),
    _family("Megatron-BERT", "MegatronBertModel"),
    _family("MobileBERT", "MobileBertModel", intra_bottleneck_size=16, true_hidden_size=16),
    _family("ModernBERT", "ModernBertModel", local_attention=8, global_attn_every_n_layers=2),
    _family("MPNet", "MPNetModel"),
    _family("MRA", "MraModel"),
    _family("Nomic", "NomicBertModel"),
    _family("Nystromformer", "NystromformerModel"),
    _family("Privacy Filter", "OpenAIPrivacyFilterModel", num_local_experts=2),
    _family("RemBERT", "RemBertModel", input_embedding_size=8, output_embedding_size=8),
    _family("RoBERTa", "RobertaModel"),
    _family("RoBERTa-PreLayerNorm", "RobertaPreLayerNormModel"),
    _family(
        "RoCBert",
        "RoCBertModel",
        shape_vocab_size=8,
        pronunciation_vocab_size=8,
        shape_embed_dim=4,
        pronunciation_embed_dim=4,
    ),
    _family("RoFormer", "RoFormerModel", embedding_size=16),
    _family("SigLIP (text)", "SiglipTextModel"),
    _family("SigLIP 2 (text)", "Siglip2TextModel"),
    _family("Splinter", "SplinterModel"),
    _family(
        "SqueezeBERT",
        "SqueezeBertModel",
        embedding_size=16,
        q_groups=1,
        k_groups=1,
        v_groups=1,
        post_attention_groups=1,
        intermediate_groups=1,
        output_groups=1,
    ),
    _family("TAPAS", "TapasModel", type_vocab_sizes=[3, 8, 8, 2, 8, 8, 4]),
    _family("TIPSv2 (text)", "Tipsv2TextModel"),
    _family("Ultrabert", "UltrabertModel"),
    _family("VisualBERT", "VisualBertModel", visual_embedding_dim=8),
    _family("XLM", "XLMModel", emb_dim=16),
    _family("XLM-RoBERTa", "XLMRobertaModel"),
    _family("XLM-RoBERTa-XL", "XLMRobertaXLModel"),
    _family("XLNet", "XLNetModel", max_position_embeddings=None, d_inner=32),
    _family("X-MOD", "XmodModel", default_language="en_XX"),
    _family("YOSO", "YosoModel"),
)
IMAGES = (
    _family("AIMv2", "Aimv2VisionModel"),
    _family("AltCLIP (vision)", "AltCLIPVisionModel"),
    _family("BEiT", "BeitModel"),
    _family("BEiT, relative positions", "BeitModel", use_relative_position_bias=True),
    _family("BLIP (vision)", "BlipVisionModel"),
    _family("BLIP-2 (vision)", "Blip2VisionModel"),
    _family("Chinese-CLIP (vision)", "ChineseCLIPVisionModel"),
    _family("CLIP (vision)", "CLIPVisionModel"),
    _family("CLIPSeg (vision)", "CLIPSegVisionModel"),
    _family("Data2Vec (vision)", "Data2VecVisionModel"),
    _family("DeiT", "DeiTModel"),
    _family("DINOv2", "Dinov2Model"),
    _family("DINOv2 with registers", "Dinov2WithRegistersModel"),
    _family("DINOv3", "DINOv3ViTModel"),
    _family("DPT", "DPTModel", backbone_out_indices=[0, 1], neck_hidden_sizes=[8, 8, 8, 8]),
    _family("FLAVA (vision)", "FlavaImageModel"),
    _family(
        "GroupViT (vision)",
        "GroupViTVisionModel",
        depths=[1, 1],
        num_group_tokens=[4, 0],
        num_output_groups=[4, 0],
    ),
    _family(
        "Hiera",
        "HieraModel",
        image_size=[32, 32],
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
        num_query_pool=1,
        patch_size=[7, 7],
        masked_unit_attention=[True, False],
    ),
    _family("I-JEPA", "IJepaModel"),
    _family("InstructBLIP (vision)", "InstructBlipVisionModel"),
    _family("InternVL (vision)", "InternVLVisionModel", image_size=[16, 16], patch_size=[4, 4]),
    _family("Janus (vision)", "JanusVisionModel"),
    _family("MetaCLIP 2 (vision)", "MetaClip2VisionModel"),
    _family("MLCD", "MLCDVisionModel", num_key_value_groups=1),
    _family("OWL-ViT (vision)", "OwlViTVisionModel"),
    _family("OWLv2 (vision)", "Owlv2VisionModel"),
    _family("Pixio", "PixioModel"),
    _family("Pixtral (vision)", "PixtralVisionModel"),
    _family("RADIO", "RadioModel", max_resolution=32, cpe_max_size=32, max_img_size=32),
    _family(
        "SAM (vision)",
        "SamVisionModel",
        mlp_dim=32,
        output_channels=8,
        global_attn_indexes=[1],
        window_size=2,
    ),
    _family("Sapiens 2", "Sapiens2Model"),
    _family(
        "SegFormer",
        "SegformerModel",
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        num_layers=None,
    ),
    _family("SigLIP (vision)", "SiglipVisionModel"),
    _family("Swin", "SwinModel", num_heads=[1, 2], depths=[1, 2], embed_dim=8, window_size=2),
    _family("Swin v2", "Swinv2Model", num_heads=[1, 2], depths=[1, 2], embed_dim=8, window_size=2),
    _family("TimeSformer", "TimesformerModel", num_frames=2),
    _family("TIPSv2 (vision)", "Tipsv2VisionModel"),
    _family("VideoMAE", "VideoMAEModel", num_frames=2),
    _family("ViT", "ViTModel"),
    _family("ViT-MAE", "ViTMAEModel", mask_ratio=0.0),
    _family("ViT-MSN", "ViTMSNModel"),
    _family("ViTDet", "VitDetModel", pretrain_image_size=16),
    _family("ViViT", "VivitModel", num_frames=2, tubelet_size=[2, 4, 4]),
    _family("X-CLIP (vision)", "XCLIPVisionModel", num_frames=2, mit_hidden_size=16),
    _family("YOLOS", "YolosModel", image_size=[16, 16], num_detection_tokens=2),
)
SOUNDS = (
    _family("AST", "ASTModel", max_length=12, frequency_stride=4, time_stride=4),
    _family(
        "Data2Vec (sound)",
        "Data2VecAudioModel",
        **{
            **WAVES,
            "conv_pos_kernel_size": 3,
            "num_conv_pos_embeddings": 2,
        },
    ),
    _family("HuBERT", "HubertModel", **WAVES),
    _family("Parakeet", "ParakeetEncoder", subsampling_conv_channels=8),
    _family("Qwen2-Audio (sound)", "Qwen2AudioEncoder", **FRAMES),
    _family("SEW", "SEWModel", **{**WAVES, "squeeze_factor": 2}),
    _family("SEW-D", "SEWDModel", **{**WAVES, "squeeze_factor": 2}),
    _family("UniSpeech", "UniSpeechModel", **WAVES),
    _family("UniSpeech-SAT", "UniSpeechSatModel", **WAVES),
    _family("Voxtral (sound)", "VoxtralEncoder", **FRAMES),
    _family("wav2vec 2.0", "Wav2Vec2Model", **WAVES),
    _family("wav2vec 2.0 BERT", "Wav2Vec2BertModel", feature_projection_input_dim=8),
    _family(
        "wav2vec 2.0 Conformer",
        "Wav2Vec2ConformerModel",
        **WAVES,
        position_embeddings_type="relative",
        conv_depthwise_kernel_size=3,
    ),
    _family("WavLM", "WavLMModel", **WAVES, num_buckets=8, max_bucket_distance=8),
    _family("Whisper (encoder)", "WhisperModel", "encoder", **FRAMES, decoder_start_token_id=2),
)
PAIRS = (
    _family("BART (encoder)", "BartModel", "encoder"),
    _family("Blenderbot (encoder)", "BlenderbotModel", "encoder"),
    _family("Blenderbot small (encoder)", "BlenderbotSmallModel", "encoder"),
    _family("M2M100 (encoder)", "M2M100Model", "encoder"),
    _family("Marian (encoder)", "MarianModel", "encoder", decoder_start_token_id=2),
    _family("mBART (encoder)", "MBartModel", "encoder"),
    _family("MVP (encoder)", "MvpModel", "encoder"),
    _family("Pegasus (encoder)", "PegasusModel", "encoder"),
    _family("PLBART (encoder)", "PLBartModel", "encoder"),
    _family(
        "Speech2Text (encoder)",
        "Speech2TextModel",
        "encoder",
        input_feat_per_channel=8,
        conv_channels=16,
        max_source_positions=24,
    ),
    _family("Switch (encoder)", "SwitchTransformersEncoderModel", num_experts=2),
    _family("T5 (encoder)", "T5EncoderModel"),
    _family("mT5 (encoder)", "MT5EncoderModel"),
    _family("UMT5 (encoder)", "UMT5EncoderModel"),
)
DECODERS = (
    _family("GPT-2", "GPT2Model"),
    _family("Llama", "LlamaModel"),
    _family("Mistral", "MistralModel", sliding_window=5),
    _family("Qwen3", "Qwen3Model"),
)
KINDS: dict[str, tuple[Family, ...]] = {
    "Texts": TEXTS,
    "Images and videos": IMAGES,
    "Sound": SOUNDS,
    "Encoders of encoder-decoders": PAIRS,
    "Decoders": DECODERS,
}
"""All families by what they read."""
FAMILIES = tuple(family for families in KINDS.values() for family in families)
"""All families."""
