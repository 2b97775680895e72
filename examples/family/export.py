"""Write a model's weights as F32 safetensors (MLX and Hugging Face layout) and as GGUF.

``python -m examples.family.export layout CHECKPOINT FOLDER`` turns a training checkpoint into the
F32 layout (this one needs torch); ``python -m examples.family.export gguf FOLDER FILE --type
Q8_0`` turns that layout into GGUF (numpy, gguf and safetensors are enough). Both runtimes thus
read the same numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

from examples.family.template import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START

Array = NDArray[np.float32]
TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def hf_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return ``config.json`` as Hugging Face and MLX read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config["width"],
        "intermediate_size": config["hidden"],
        "num_hidden_layers": config["layers"],
        "num_attention_heads": config["heads"],
        "num_key_value_heads": config["heads"],
        "head_dim": config["width"] // config["heads"],
        "hidden_act": "silu",
        "rms_norm_eps": config["norm_eps"],
        "rope_theta": config["rope_theta"],
        "max_position_embeddings": config["context"],
        "vocab_size": config["vocabulary"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def tokenizer_config(context: int) -> dict[str, Any]:
    """Return ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": IM_START,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }


def hf_tensors(weights: dict[str, Array], config: dict[str, Any]) -> dict[str, Array]:
    """Rename the training weights, with the stacked matrices taken apart."""
    width, hidden = config["width"], config["hidden"]
    out = {
        "model.embed_tokens.weight": weights["embedding"],
        "model.norm.weight": weights["final_norm"],
    }
    for i in range(config["layers"]):
        source, target = f"blocks.{i}.", f"model.layers.{i}."
        q, k, v = np.split(weights[source + "qkv"], [width, 2 * width])
        gate, up = np.split(weights[source + "gate_up"], [hidden])
        out |= {
            target + "self_attn.q_proj.weight": q,
            target + "self_attn.k_proj.weight": k,
            target + "self_attn.v_proj.weight": v,
            target + "self_attn.o_proj.weight": weights[source + "attention_out"],
            target + "mlp.gate_proj.weight": gate,
            target + "mlp.up_proj.weight": up,
            target + "mlp.down_proj.weight": weights[source + "down"],
            target + "input_layernorm.weight": weights[source + "attention_norm"],
            target + "post_attention_layernorm.weight": weights[source + "mlp_norm"],
        }
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in out.items()}


def write_layout(checkpoint: Path, folder: Path, tokenizer: Path) -> None:
    """Write the F32 layout of a training checkpoint into ``folder``."""
    import torch
    from safetensors.numpy import save_file

    content = torch.load(checkpoint, map_location="cpu")
    weights = {name: tensor.float().numpy() for name, tensor in content["model"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    config = content["config"]
    save_file(hf_tensors(weights, config), folder / "model.safetensors", metadata={"format": "pt"})
    for name, data in (
        ("config.json", hf_config(config)),
        ("tokenizer_config.json", tokenizer_config(config["context"])),
    ):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


def interleave(matrix: Array, heads: int) -> Array:
    """Reorder the rows of a query or key matrix from rotate-half RoPE to llama.cpp's pairs.

    Row j of a head's first half and row j of its second half turn together; llama.cpp wants
    such two rows next to each other.
    """
    rows, columns = matrix.shape
    half = rows // heads // 2
    paired = matrix.reshape(heads, 2, half, columns).swapaxes(1, 2)
    return np.ascontiguousarray(paired.reshape(rows, columns))


_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """Translate a tensor's name."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["special"] for token in data["added_tokens"]}
    vocabulary = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
    types = []
    for token in vocabulary:
        if token not in added:
            types.append(gguf.TokenType.NORMAL)
        else:
            types.append(gguf.TokenType.CONTROL if added[token] else gguf.TokenType.USER_DEFINED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    # Digits one by one, then the GPT-2 split: that is what llama.cpp calls "smollm".
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary.index(IM_START))
    writer.add_eos_token_id(vocabulary.index(IM_END))
    writer.add_pad_token_id(vocabulary.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def write_gguf(folder: Path, path: Path, quantization: str = "F32", name: str = "") -> None:
    """Write the F32 layout in ``folder`` as GGUF; norms stay F32 in every type."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name or path.stem.rsplit("-", 1)[0])
    writer.add_file_type(FILE_TYPES[quantization])
    _add_shape(writer, config)
    _add_tokenizer(writer, folder)
    for hf_name, array in sorted(load_file(folder / "model.safetensors").items()):
        if "q_proj" in hf_name or "k_proj" in hf_name:
            array = interleave(array, config["num_attention_heads"])
        kind = TYPES[quantization if array.ndim == 2 else "F32"]
        data = array if kind == TYPES["F32"] else quantize(array, kind)
        writer.add_tensor(gguf_name(hf_name), data, raw_dtype=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Export by the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    layout = commands.add_parser("layout", help="checkpoint to F32 safetensors")
    layout.add_argument("checkpoint", type=Path)
    layout.add_argument("folder", type=Path)
    layout.add_argument(
        "--tokenizer",
        type=Path,
        default=Path(__file__).resolve().parent / "models" / "tokenizer.json",
    )
    to_gguf = commands.add_parser("gguf", help="F32 safetensors to GGUF")
    to_gguf.add_argument("folder", type=Path)
    to_gguf.add_argument("path", type=Path)
    to_gguf.add_argument("--type", choices=sorted(TYPES), default="F32")
    to_gguf.add_argument("--name", default="")
    args = parser.parse_args()
    if args.command == "layout":
        write_layout(args.checkpoint, args.folder, args.tokenizer)
    else:
        write_gguf(args.folder, args.path, args.type, args.name)


if __name__ == "__main__":
    main()
