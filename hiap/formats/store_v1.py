"""Version 1 of the folders of ``hiap.save`` (hiap 0.3.0 and before), which had fields for the sizes of a block where
version 2 has modules, said in the words of version 2. Read only; what is missing, older releases did not know."""

from __future__ import annotations

import json
from typing import Any

VERSION = 1
_NORMS = {"layernorm": "LayerNorm", "torch_layernorm": "torch.LayerNorm", "rmsnorm": "RmsNorm"}
_ACTIVATIONS = {"gelu": "GELU", "quick_gelu": "QuickGELU", "relu": "ReLU", "silu": "SiLU"}
_ROPES = {"cat": "RotaryEmbeddingCat", "mixed": "RotaryEmbeddingMixed", "dinov3": "RotaryEmbeddingDinoV3"}
_CLASSES = {"vit": "VisionTransformer", "eva": "Eva", "beit": "Beit"}


class _Old(dict[str, Any]):
    def __missing__(self, name: str) -> None:
        return None


def in_version_2(text: str) -> dict[str, Any]:
    """Return the same description in version 2's words. Raises what looking for fields in wrong values raises."""
    old = json.loads(text, object_hook=_Old)
    family = old["family"] or "vit"
    known = {
        **(old["pixels"] or {}),
        "label_names": old["label_names"],
        "label_descriptions": old["label_descriptions"],
    }
    return {
        "format": old["format"],
        "version": 2,
        "model": old["stem"] or _CLASSES[family] + ("Distilled" if old["distilled"] else ""),
        "arguments": _arguments(old, family),
        "known": known,
        "layout": old["layout"],
        "frozen": old["frozen"] or [],
        "parts": _parts(old, family),
        "blocks": [_block(block, old["embed_dim"]) for block in old["blocks"]],
    }


def _arguments(old: _Old, family: str) -> dict[str, Any]:
    names = ["img_size", "in_chans", "num_classes", "global_pool", "embed_dim"]
    names += [] if old["stem"] else ["patch_size"]
    if family == "beit":
        return {"use_abs_pos_emb": old["pos_embed"], **{name: old[name] for name in names}}
    names += ["class_token", "no_embed_class", "dynamic_img_size", "dynamic_img_pad"]
    if family == "eva":
        own = {"use_abs_pos_emb": old["pos_embed"], "num_reg_tokens": old["reg_tokens"]}
        return {**own, "use_pre_transformer_norm": bool(old["norm_pre"]), **{name: old[name] for name in names}}
    names += [] if old["distilled"] else ["reg_tokens", "pool_include_prefix"]
    own = {"pos_embed": "learn" if old["pos_embed"] else "none", "pre_norm": bool(old["norm_pre"])}
    return {**own, **{name: old[name] for name in names}}


def _parts(old: _Old, family: str) -> dict[str, Any]:
    (positions, patches, head), dim = old["drops"] or (0.0, 0.0, 0.0), old["embed_dim"]
    parts = {"pos_drop": _dropout(positions), "head_drop": _dropout(head)}
    parts |= {name: _norm(old[name]) for name in ("norm", "fc_norm")}
    parts |= {} if family == "beit" else {"norm_pre": _norm(old["norm_pre"])}
    if patches:
        prefix = old["class_token"] + old["distilled"] + old["reg_tokens"]
        parts["patch_drop"] = {"is": "PatchDropout", "prob": patches, "num_prefix_tokens": prefix}
    if old["embed_norm"]:
        parts["patch_embed.norm"] = _norm(old["embed_norm"])
    if rope := old["rope"]:
        names = ("dim", "temperature", "grid_indexing", "grid_offset", "rotate_half", "ref_feat_shape")
        found = {name: rope[name] for name in names if rope[name]}
        found |= {
            "mixed": {"num_heads": rope["num_heads"], "depth": len(old["blocks"])},
            "cat": {"in_pixels": False},
        }.get(rope["rope_type"], {})
        grid = [size // patch for size, patch in zip(old["img_size"], old["patch_size"], strict=True)]
        parts["rope"] = {"is": _ROPES[rope["rope_type"]], "feat_shape": grid if rope["fixed"] else None, **found}
    if pool := old["pool"]:
        parts["attn_pool"] = _pool(pool, dim)
        if not pool["heads"] and old["num_classes"]:
            parts["head"] = _linear(2 * dim, old["num_classes"])
    if old["head"]:
        layers = [_layer(layer) for layer in old["head"]]
        parts["head"] = layers[0] if len(layers) == 1 else _sequence(layers)
    return parts


def _pool(pool: _Old, dim: int) -> dict[str, Any]:
    if not pool["heads"]:
        return {"is": "TokenAndMean", "prefix": pool["prefix"]}
    mlp = _mlp(pool, dim)
    sizes = {"in_features": dim, "num_heads": pool["heads"]}
    return {"is": "AttentionPoolLatent", **sizes, "norm": _norm(pool["norm"]), "mlp": mlp}


def _layer(layer: _Old) -> dict[str, Any]:
    if layer["kind"] == "linear":
        return _linear(layer["inputs"], layer["outputs"], layer["bias"] is not False)
    if layer["kind"] == "dropout":
        return _dropout(layer["rate"])
    return _act(layer) if layer["kind"] == "activation" else _norm(layer["norm"])


def _block(block: _Old, dim: int) -> dict[str, Any]:
    attn, paths = block["attn"], block["drop_paths"] or (0.0, 0.0)
    found: dict[str, Any] = {"is": "Block" if attn and attn["heads"] else "PrunedBlock"}
    found |= {name: dim for name in ("attn_constant", "mlp_constant") if block[name]}
    branches = {1: attn and ("attn", _attention(attn, dim)), 2: block["neurons"] and ("mlp", _mlp(block, dim))}
    for i, branch in branches.items():
        if branch:
            norm = _norm(block[f"norm{i}"])
            again = block["norm2_again"] if i == 2 else None
            found[f"norm{i}"] = _sequence([norm, _norm(again)]) if again else norm
            found[branch[0]] = branch[1]
            scale = {"is": "LayerScale", "dim": dim} if block[f"layer_scale{i}"] else _norm(block[f"after{i}"])
            found[f"ls{i}"] = scale
            found[f"drop_path{i}"] = {"is": "DropPath", "drop_prob": paths[i - 1]} if paths[i - 1] else _norm(None)
    return found


def _attention(attn: _Old, dim: int) -> dict[str, Any]:
    rates, values = attn["drops"] or (0.0, 0.0), attn["value_dims"]
    found = {"dim": dim, "attn_drop": rates[0], "proj_drop": rates[1]}
    found |= {name: attn[name] for name in ("scale", "qkv_bias", "proj_bias")}
    found |= {name: _norm(attn[name]) for name in ("q_norm", "k_norm", "norm") if attn[name]}
    if attn["heads"]:
        return {"is": "Attention", "num_heads": attn["heads"], "attn_head_dim": attn["head_dim"], **found}
    if attn["window"]:
        found["position"] = {"is": "RelativeBias", "window": attn["window"], "heads": len(values)}
    elif attn["prefix"] is not None:
        halves = bool(attn["halves"])
        found["position"] = {"is": "Rotary", "prefix": attn["prefix"], "halves": halves, "heads": attn["angles"]}
    return {"is": "PrunedAttention", "qk_dims": attn["qk_dims"], "value_dims": values, **found}


def _mlp(spec: _Old, dim: int) -> dict[str, Any]:
    neurons, act, rates = spec["neurons"], _act(spec), spec["drops"] or (0.0, 0.0)
    if spec["glu"]:
        act = {"is": "Glu", "act": act, "gate_last": spec["glu"] == "last"}
    first = {"fc1": _linear(dim, 2 * neurons if spec["glu"] else neurons, spec["fc1_bias"] is not False)}
    first |= {"act": act, "drop1": _dropout(rates[0]), "norm": _norm(spec["hidden_norm"])}
    second = {"fc2": _linear(neurons, dim, spec["fc2_bias"] is not False), "drop2": _dropout(rates[1])}
    return {"is": "Mlp", **first, **second}


def _linear(inputs: int, outputs: int, bias: bool = True) -> dict[str, Any]:
    return {"is": "Linear", "in_features": inputs, "out_features": outputs, "bias": bias}


def _sequence(layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"is": "Sequential", **{str(i): layer for i, layer in enumerate(layers)}}


def _dropout(rate: float) -> dict[str, Any]:
    return {"is": "Dropout", "p": rate}


def _norm(norm: _Old | None) -> dict[str, Any]:
    return {"is": _NORMS[norm["kind"]], "width": norm["width"], "eps": norm["eps"]} if norm else {"is": "Identity"}


def _act(spec: _Old) -> dict[str, Any]:
    name = spec["activation"] or "gelu"
    return {"is": "GELU", "approximate": "tanh"} if name == "gelu_tanh" else {"is": _ACTIVATIONS[name]}
