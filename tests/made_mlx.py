"""Small MLX folders with random weights, of as many architectures as there are kinds of caches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

VOCABULARY = 2048
CONTEXT = 512

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "max_position_embeddings": CONTEXT, "rope_theta": 10_000.0,
}  # fmt: skip

CONFIGS = {
    # Attention to everything, two query heads for each of the cache's.
    "llama": {**_COMMON, "model_type": "llama", "tie_word_embeddings": False},
    # Every second layer sees the last 24 tokens only: its cache rolls.
    "sliding": {
        **_COMMON, "model_type": "llama", "tie_word_embeddings": True, "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    # Gemma's windows, its first layers all of them.
    "gemma3": {
        **_COMMON, "model_type": "gemma3_text", "num_hidden_layers": 3, "query_pre_attn_scalar": 16,
        "sliding_window": 16, "sliding_window_pattern": 3,
    },
    # Keys and values compressed into one latent vector.
    "deepseek": {
        **_COMMON, "model_type": "deepseek_v2", "num_key_value_heads": 4, "kv_lora_rank": 16,
        "q_lora_rank": None, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 16,
        "moe_intermediate_size": 32, "first_k_dense_replace": 2,
        "rope_scaling": {"type": "yarn", "factor": 1.0},
    },
    # Learned positions, asked for by number.
    "gpt2": {
        "model_type": "gpt2", "n_ctx": CONTEXT, "n_embd": 64, "n_head": 4, "n_layer": 2,
        "n_positions": CONTEXT, "layer_norm_epsilon": 1e-5, "vocab_size": VOCABULARY,
    },
    # No attention: a state of fixed size.
    "mamba2": {
        "model_type": "mamba2", "num_heads": 4, "head_dim": 16, "vocab_size": VOCABULARY,
        "hidden_size": 32, "intermediate_size": 64, "state_size": 16, "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-5, "conv_kernel": 4, "n_groups": 1, "use_bias": False,
        "use_conv_bias": True, "tie_word_embeddings": False, "time_step_limit": [0.0, 1e6],
        "time_step_rank": 4, "max_position_embeddings": CONTEXT,
    },
    # Both in one layer.
    "falcon_h1": {
        **_COMMON, "model_type": "falcon_h1", "mamba_d_ssm": 64, "mamba_n_heads": 4,
        "mamba_d_head": 16, "mamba_d_state": 16, "tie_word_embeddings": True,
        "lm_head_multiplier": 1.0,
    },
    # Positions as plain numbers: mlx-lm's code of it breaks on a batch.
    "gpt_bigcode": {
        "model_type": "gpt_bigcode", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_inner": 96,
        "n_positions": CONTEXT, "layer_norm_epsilon": 1e-5, "vocab_size": VOCABULARY,
    },
    # Attention in chunks of 32 tokens: mlx-lm has no batch cache of this kind.
    "llama4": {
        "model_type": "llama4",
        "text_config": {
            **_COMMON, "model_type": "llama4_text", "attention_bias": False,
            "attention_chunk_size": 32, "interleave_moe_layer_step": 2, "num_hidden_layers": 4,
            "intermediate_size_mlp": 96, "num_experts_per_tok": 1, "num_local_experts": 2,
            "rope_scaling": None, "use_qk_norm": True,
        },
    },
}  # fmt: skip


def write(kind: str, folder: Path, tokenizer: Path, **changed: object) -> Path:
    """A model of this kind, F32, under a tokenizer; ``changed`` are other numbers of its config."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.utils import _get_classes

    config = {**CONFIGS[kind], **changed}
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    key = mx.random.key(11)
    weights = []
    for name, array in tree_flatten(model.parameters()):
        key, mine = mx.random.split(key)
        if array.ndim > 1:
            # Widely spread, so that logits differ by more than what rounding does.
            array = mx.random.normal(array.shape, key=mine) * (1.5 / array.shape[-1] ** 0.5)
        weights.append((name, array))
    model.update(tree_unflatten(weights))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer, folder / "tokenizer.json")
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), {"format": "mlx"})
    return folder
