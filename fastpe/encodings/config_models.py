"""What the code of models says about rotation and their configurations do not: Hugging Face's transformers 5.23.0, by model type.

`tests/torch/test_torch_configurations.py` compares each of these types with the model's own code.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Pairs are channels i and i + d/2.
HALF = _names("""
    afmoe apertus arcee aria_text bamba beam bitnet chameleon cohere_compass_text cosmos3_edge_text csm csm_depth_decoder_model cwm
    dbrx deepseek_ocr2_encoder deepseek_ocr2_text dia_decoder dia_encoder diffllama diffusion_gemma_text doge dots1
    dots3_note_audio_encoder embedding_gemma2_text emu3_text_model esm esmc eurobert evolla exaone4 exaone_moe falcon falcon_h1
    flex_olmo flint gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm4_moe glm4v_moe_text glm_image_text
    glmasr_encoder gpt_neox gpt_neox_japanese gpt_oss gradium_phonon_tts granite granite4_vision_text granite_docling_text granite_swa
    granitemoe granitemoe_swa granitemoehybrid granitemoeshared gte higgs_audio_v2 hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hy_v4 hyperclovax idefics internlm3 iquestcoder jais2 jetmoe jina_embeddings_v3 kolibri1 kyutai_speech_to_text laguna
    lasr_encoder lfm2 lfm2_moe lfm3 llama mellum mimi mimi_decoder mimi_encoder mimo_v2_flash minicpm3 minimax minimax_m2
    minimax_m3_vl_text ministral ministral3 mistral mixtral mllama_text_model modernbert modernbert-decoder molmo2_text moshi
    muse_glimmer_assistant muse_glimmer_text muse_spark_text nemotron nemotron3_5_transcribe_asr_audio
    nemotron3_5_transcribe_word_timestamp nemotron3_diarization_audio neomme neucodec nomic_bert olmo olmo2 olmo3 olmo_hybrid olmoe
    paddleocr_vl_text persimmon phi phi3 phi4_multimodal phimoe pocket_tts pocket_tts_audio_tokenizer
    pocket_tts_audio_tokenizer_decoder pocket_tts_audio_tokenizer_encoder qwen2 qwen2_5_omni_dit qwen2_5_omni_talker qwen2_5_omni_text
    qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
    qwen3_omni_moe_talker_code_predictor qwen3_omni_moe_talker_text qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text qwen4_exp_text
    recurrent_gemma seamless_m4t seed_oss smollm3 solar_open stablelm starcoder2 step3p5 t5_gemma_module t5gemma2_decoder
    t5gemma2_text timesfm2_5 ultrabert unlimited_ocr_text vaultgemma voxtral_realtime_encoder voxtral_realtime_text wav2vec2-bert
    wav2vec2-conformer xcodec2 zamba2 zaya
    """)
# Pairs are channels 2i and 2i + 1.
INTERLEAVED = _names("""
    axk1 axk2 bailing_hybrid blt_global_transformer blt_local_decoder blt_local_encoder blt_patcher chatglm codegen cohere cohere2
    cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots3_note_text ernie4_5 ernie4_5_moe ernie4_5_vl_moe_text glm glm4
    glm4_moe_lite glm4v_text glm_moe_dsa glm_ocr_text gptj helium kimi_k2 llama4_text longcat_flash mistral4 moonshine
    moonshine_streaming openai_privacy_filter pe_audio_encoder pe_audio_video_encoder pe_video_encoder roformer youtu
    """)
KNOWN = HALF | INTERLEAVED

# The base where a configuration has none; 10 000 for other known types, and none for those of NO_BASE.
_BASES = {
    1e3: "nomic_bert",
    2e4: "jina_embeddings_v3 pe_audio_encoder pe_audio_video_encoder pe_video_encoder",
    1e5: "helium",
    1.6e5: "gte",
    5e5: "bitnet blt_global_transformer blt_local_decoder blt_local_encoder cohere csm csm_depth_decoder_model ernie4_5 ernie4_5_moe "
    "ernie4_5_vl_moe_text evolla flex_olmo llama4_text mllama_text_model muse_glimmer_assistant muse_spark_text olmo3 "
    "paddleocr_vl_text qwen3_vl_moe_text qwen3_vl_text",
    1e6: "emu3_text_model lfm2 lfm2_moe minimax mixtral phimoe qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text "
    "qwen3_omni_moe_text solar_open gemma3_text gemma3n_text t5gemma2_decoder t5gemma2_text",
    2e6: "smollm3",
    5e6: "minimax_m2 minimax_m3_vl_text",
    6e6: "bailing_hybrid",
    1e7: "longcat_flash",
    11158840.0: "hy_v3",
    1e8: "cosmos3_edge_text",
    100.0: "dinov3_vit eomt_dinov3 sapiens2",
}
BASES = {name: base for base, names in _BASES.items() for name in names.split()}
# A rule, or bases by layer, that their code takes where the configuration has none.
NO_BASE = _names("""
    apertus beam cohere_compass_text cwm deepseek_v4 diffusion_gemma_text dots3_note_text embedding_gemma2_text gemma4_text
    gemma4_unified_text gpt_oss higgs_audio_v2 kimi_k2 laguna lfm3 mellum mimo_v2_flash ministral3 mistral4 neomme
    openai_privacy_filter step3p5 ultrabert zaya
    """)
# The bases of layers of full and of sliding attention where older configurations have none.
LAYER_BASES = {
    **dict.fromkeys(("gemma3_text", "gemma3n_text", "t5gemma2_decoder", "t5gemma2_text"), (1e6, 1e4)),
    **dict.fromkeys(("modernbert", "modernbert-decoder"), (1.6e5, 1e4)),
}
# The share of a head that rotates where a configuration does not say.
_SHARES = {
    0.25: "gpt_neox qwen3_5_moe_text qwen3_5_text qwen3_next stablelm",
    0.334: "mimo_v2_flash",
    0.5: "bamba dots3_note_audio_encoder glm glm4 glm4_moe glm4v_moe_text glmasr_encoder nemotron nemotron3_5_transcribe_asr_audio "
    "nemotron3_5_transcribe_word_timestamp persimmon phi recurrent_gemma",
    0.8: "moonshine_streaming",
    0.9: "moonshine",
    1.0: "minimax_m3_vl_text",  # its code does not read rotary_dim
}
SHARES = {name: share for share, names in _SHARES.items() for name in names.split()}

# Their code reads the share; that of other known types does not, and rotates whole heads.
PARTIAL = SHARES.keys() | _names("""
    chatglm deepseek_v4 diffusion_gemma_text dots3_note_text glm4_moe_lite glm4v_text glm_image_text glm_ocr_text gpt_neox_japanese
    laguna minimax_m2 neomme nemotron3_diarization_audio phi3 phi4_multimodal qwen4_exp_text solar_open step3p5 zaya
    """)

# Their attention multiplies scores by YaRN's softmax_scale; that of other known types has mscale_all_dim in cosines and sines alone.
SOFTMAX_SCALED = _names("""
    axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa hy_v4 kimi_k2 longcat_flash minicpm3 mistral4
    youtu
    """)

# Models with rotation as an option: the key that says so.
SWITCHES = {
    **dict.fromkeys(("esm", "granitemoehybrid"), "position_embedding_type"),
    **dict.fromkeys(("seamless_m4t", "wav2vec2-bert", "wav2vec2-conformer"), "position_embeddings_type"),
    "zamba2": "use_mem_rope",
}
# Layers of full attention do not rotate.
SLIDING_ONLY = _names("afmoe cohere2 cohere2_moe exaone4 exaone_moe")

# Positions with several axes: the order of the sections, and their sizes where a configuration has none.
SECTIONS = {
    **dict.fromkeys(
        ("paddleocr_vl_text", "qwen2_5_omni_talker", "qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text"),
        ("contiguous", (16, 24, 24)),
    ),
    **dict.fromkeys(("glm4v_moe_text", "glm4v_text", "glm_image_text", "glm_ocr_text"), ("contiguous", (8, 12, 12))),
    **dict.fromkeys(
        ("cohere_compass_text", "cosmos3_edge_text", "qwen3_omni_moe_talker_text", "qwen3_omni_moe_text"),
        ("interleaved", (24, 20, 20)),
    ),
    **dict.fromkeys(("qwen3_vl_moe_text", "qwen3_vl_text"), ("interleaved", (24, 20, 20))),
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text", "qwen4_exp_text"), ("interleaved", (11, 11, 10))),
    "ernie4_5_vl_moe_text": ("alternating", (22, 22, 20)),  # written (height, width, time)
    "neomme": ("interleaved", None),  # two axes, half of the frequencies each
}
# Vision: how the channels are divided among the axes of a patch.
AXIAL = {
    **dict.fromkeys(
        _names("""
        cohere_compass_vision dinov3_vit dots3_note_vision_encoder eomt_dinov3 ernie4_5_vl_moe_vision exaone4_5_vision glm4v_moe_vision
        glm4v_vision glm5_next_vision glm_ocr_vision lfm3_vl_vision mlcd_vision_model muse_glimmer_vision muse_spark_vision
        paddleocr_vl_vision qwen2_5_omni_vision_encoder qwen2_5_vl_vision qwen2_vl_vision qwen3_5_moe_vision qwen3_5_vision
        qwen3_omni_moe_vision_encoder qwen3_vl_moe_vision qwen3_vl_vision qwen4_exp_vision sapiens2 video_llama_3_vision
        """),
        "half",
    ),
    **dict.fromkeys(_names("edgetam_video llama4_vision_model sam2_video sam3_tracker_video sam3_vit_model"), "interleaved"),
    "minimax_m3_vl_vision": "three",
    "pixtral": "pixtral",
}
_COLUMNS_FIRST = (
    "its columns come before its rows; write Rotary(base, {}sections=(n, n), section_frequencies='own') and give columns first"
)
# Models whose rotation one encoding cannot say, or a configuration does not determine.
REFUSED = {
    "blt": "each of its parts rotates; name one as part, e.g. 'global'",
    "efficientloftr": "all heads rotate as one; write Rotary(base, interleaved=True, sections=(n, n), section_layout='interleaved', "
    "section_frequencies='own') for queries of 4 n channels, and count rows and columns from 1",
    "gemma4_vision": "each half of a head rotates on its own; write two encodings, with rotary_dim and rotary_offset, one for each axis",
    **dict.fromkeys(
        ("hunyuan_vl", "hunyuan_vl_text"), "the two channels of a pair follow different axes, which is not a rotation"
    ),
    "inkling2_vision": _COLUMNS_FIRST.format("interleaved=True, "),
    "kimi_k25_vision": _COLUMNS_FIRST.format("section_layout='interleaved', "),
    "mistral_large4_text": "its frequencies were learned and lie in the weights; write scaling.Custom with them",
    "musicflamingo": "its angles depend on time stamps of windows",
    "nanochat": "it turns the other way; write Rotary(base) and pass inverse=True to apply_rotary",
    "step3p5_vision": _COLUMNS_FIRST.format(""),
}
