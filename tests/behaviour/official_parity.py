"""Compare the encoder with the published code, and write down what the published code computes.

    python -m tests.behaviour.official_parity PATH/TO/Prompt-Free-Diffusion

runs lib/model_zoo/{seecoder,swin}.py of a clone of SHI-Labs/Prompt-Free-Diffusion (commit f4295fc, which cannot be
shipped here) and our encoder on the same weights and pictures, prints the largest differences, and writes
official_parity.json: shapes, sampled values of every map and of the context as the published code gives them, and those
differences. The tests rebuild the weights by the recipe below and compare with the sampled values, so that they need no
clone.

`--real-size` adds one comparison at the released sizes (294 M weights, a minute); only its differences are kept.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch

OUTPUT = Path(__file__).with_name("official_parity.json")
SIZES = [(64, 64), (96, 64), (100, 132), (37, 53), (512, 512)]
NUM_SAMPLES = 32
PREFIX = "ctx.image."

# Tiny widths, but the released window: what goes wrong in a Swin goes wrong in its windows.
TINY = {
    "backbone_args": {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]},
    "context_dim": 64,
    "num_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 48,
    "query_layers": 4,
    "query_ffn_dim": 80,
    "num_global_queries": 2,
    "num_local_queries": 6,
}
REAL = {
    "backbone_args": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
    "context_dim": 768,
    "num_heads": 8,
    "decoder_layers": 6,
    "decoder_ffn_dim": 1024,
    "query_layers": 9,
    "query_ffn_dim": 2048,
    "num_global_queries": 4,
    "num_local_queries": 144,
}


def _uniform(label: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [0, 1) that follow from the label alone, on any machine."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed)).random(shape)


def weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of one released key: no bias, norm or zero-initialised weight is left trivial."""
    values = 2 * _uniform(key, shape) - 1
    if len(shape) == 1:
        values = 0.3 * values + (1 if key.endswith("weight") else 0)
    elif not key.endswith(
        ("level_embed", "level_embed.weight", "query.weight", "query_pos_embedding.weight", "bias_table")
    ):
        values *= math.sqrt(3 / math.prod(shape[1:]))  # keeps the size of activations
    return torch.from_numpy(values.astype(np.float32))


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(_uniform(f"pixels {height}x{width}", (1, 3, height, width)).astype(np.float32))


def released_weights(shapes: dict[str, tuple[int, ...]], tables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights for released keys of the given shapes; index tables are taken as they are."""
    return {key: tables[key] if key in tables else weight(key, shape) for key, shape in shapes.items()}


def samples(label: str, tensor: torch.Tensor) -> list[float]:
    """NUM_SAMPLES entries at places that follow from the label."""
    places = (_uniform(f"places {label}", (NUM_SAMPLES,)) * tensor.numel()).astype(np.int64)
    return tensor.flatten()[torch.from_numpy(places)].tolist()


def _published(clone: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """Import the two published files without the rest of their package, whose requirements are many."""
    registry = types.ModuleType("lib.model_zoo.common.get_model")
    registry.get_model = lambda: None  # type: ignore[attr-defined]
    registry.register = lambda name: lambda module: module  # type: ignore[attr-defined]
    for name in ("lib", "lib.model_zoo", "lib.model_zoo.common"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[registry.__name__] = registry
    modules = []
    for name in ("seecoder", "swin"):
        spec = importlib.util.spec_from_file_location(f"published_{name}", clone / "lib" / "model_zoo" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        modules.append(module)
    return modules[0], modules[1]


class PublishedEncoder(torch.nn.Module):
    """The published parts, put together as their `SemanticContextEncoder` does."""

    def __init__(self, clone: Path, config: dict, position_aware: bool) -> None:
        super().__init__()
        seecoder, swin = _published(clone)
        args, dim, heads = config["backbone_args"], config["context_dim"], config["num_heads"]
        self.imencoder = swin.SwinTransformer(**args, window_size=12, drop_path_rate=0.3)
        self.imdecoder = seecoder.Decoder(
            inchannels={f"res{3 + level}": args["embed_dim"] * 2 ** (level + 1) for level in range(3)},
            trans_input_tags=["res3", "res4", "res5"],
            trans_num_layers=config["decoder_layers"],
            trans_dim=dim,
            trans_nheads=heads,
            trans_dropout=0.1,
            trans_feedforward_dim=config["decoder_ffn_dim"],
        )
        self.qtransformer = seecoder.QueryTransformer(
            in_channels=dim,
            hidden_dim=dim,
            num_queries=[config["num_global_queries"], config["num_local_queries"]],
            nheads=heads,
            num_layers=config["query_layers"],
            feedforward_dim=config["query_ffn_dim"],
            with_fea2d_pos=position_aware,
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.imencoder(x)
        decoded = self.imdecoder({tag: maps[tag] for tag in ("res3", "res4", "res5")})
        return {**maps, "context": self.qtransformer([decoded[tag] for tag in ("res3", "res4", "res5")])}


def _compare(clone: Path, config: dict, position_aware: bool, sizes: list[tuple[int, int]]) -> list[dict]:
    from seecoder import SeeCoder

    published = PublishedEncoder(clone, config, position_aware).eval()
    state = {PREFIX + key: value for key, value in published.state_dict().items()}
    tables = {key: value for key, value in state.items() if key.endswith("relative_position_index")}
    weights = released_weights({key: tuple(value.shape) for key, value in state.items()}, tables)
    published.load_state_dict({key.removeprefix(PREFIX): value for key, value in weights.items()})
    ours = SeeCoder.from_official(weights, **config)
    cases = []
    for height, width in sizes:
        picture = pixels(height, width)
        with torch.no_grad():
            theirs = published(picture)
            mine = dict(zip(("res2", "res3", "res4", "res5"), ours.backbone(picture), strict=True))
            mine["context"] = ours(picture)
        case = {"height": height, "width": width, "position_aware": position_aware, "outputs": {}}
        for name, value in theirs.items():
            case["outputs"][name] = {
                "shape": list(value.shape),
                "max_abs_diff": (value - mine[name]).abs().max().item(),
                "samples": samples(f"{name} {height}x{width}", value),
            }
        print(
            height,
            width,
            "PA" if position_aware else "plain",
            {k: v["max_abs_diff"] for k, v in case["outputs"].items()},
        )
        cases.append(case)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="clone of SHI-Labs/Prompt-Free-Diffusion at f4295fc")
    parser.add_argument("--real-size", action="store_true", help="also compare at the released sizes")
    arguments = parser.parse_args()
    result = {
        "reference": "SHI-Labs/Prompt-Free-Diffusion@f4295fc, lib/model_zoo/{seecoder,swin}.py, float32, one picture",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__},
        "config": TINY,
        "cases": [case for aware in (False, True) for case in _compare(arguments.clone, TINY, aware, SIZES)],
    }
    if arguments.real_size:
        cases = [
            case for aware in (False, True) for case in _compare(arguments.clone, REAL, aware, [(100, 132), (512, 512)])
        ]
        for case in cases:
            for output in case["outputs"].values():
                del output["samples"]
        result["real_size"] = cases
    elif OUTPUT.exists():
        result["real_size"] = json.loads(OUTPUT.read_text()).get("real_size", [])
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
