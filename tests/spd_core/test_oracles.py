"""The public code's reference outputs through `tests.oracles`, wrong files, and files of other sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spd_core import diffusion
from spd_core.families.llamagen.model import PRESETS, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.vq import Vq, VqConfig
from spd_core.families.mar import iterations as decoding
from spd_core.families.mar.model import Mar, preset
from spd_core.families.mar.vae import KlVae, KlVaeConfig
from tests import oracles
from tests.oracles import KINDS, OracleError, check
from tests.oracles import mar as mar_oracles
from tests.oracles.__main__ import main
from tests.oracles.files import BUNDLED, failing, shared


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_shared_oracle(kind: str):
    assert failing(shared(kind)) == set()


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.json")), ids=lambda path: path.stem)
def test_bundled_oracle(path: Path):
    assert failing(path) == set()


def test_bundled_oracles_are_there():
    assert {path.stem for path in BUNDLED.glob("*.safetensors")} == {
        "mar_head",
        "mar_diffusion",
        "llamagen_gpt",
        "inception_fid",
        "sphere_generate",
    }


def test_any_small_change_of_a_weight_is_noticed(tmp_path: Path):
    path = copied(tmp_path)
    tensors = load_file(path.with_suffix(".safetensors"))
    for key in [key for key in tensors if key.startswith("w/")]:
        changed = {**tensors, key: tensors[key] * 1.05 + 0.01 * torch.randn_like(tensors[key])}
        save_file(changed, path.with_suffix(".safetensors"))
        assert failing(path), key


# Wrong files: exit 2 and one line that says what is wrong and what is allowed.


def copied(tmp_path: Path, name: str = "mar_head") -> Path:
    for suffix in (".json", ".safetensors"):
        shutil.copy(BUNDLED / f"{name}{suffix}", tmp_path)
    return tmp_path / f"{name}.json"


def edit_card(path: Path, change: Callable[[dict], None]) -> None:
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes the tensors, and the card's list of them, so that only the oracle's own check can object."""
    tensors = load_file(path.with_suffix(".safetensors"))
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path.with_suffix(".safetensors"))
    edit_card(path, lambda card: card.pop("tensors"))


def set_item(container: dict, key: str, value: object) -> None:
    container[key] = value


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no such file": (lambda p: p.unlink(), "cannot be read"),
    "not JSON": (lambda p: p.write_text("{"), "is not JSON"),
    "binary": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "another JSON": (lambda p: p.write_text("[1]"), "is not an oracle's card"),
    "unknown kind": (lambda p: edit_card(p, lambda c: set_item(c, "oracle", "flow_matching")), "'flow_matching'"),
    "no tensors": (lambda p: p.with_suffix(".safetensors").unlink(), "mar_head.safetensors"),
    "truncated": (lambda p: p.with_suffix(".safetensors").write_bytes(b"\x10" * 50), "mar_head.safetensors"),
    "undeclared tensor": (lambda p: edit_card(p, lambda c: set_item(c["tensors"], "w/x", "float32[1]")), "w/x"),
    "missing weight": (lambda p: edit_tensors(p, lambda t: t.pop("w/cond_embed.bias")), "cond_embed.bias"),
    "extra weight": (lambda p: edit_tensors(p, lambda t: set_item(t, "w/extra", torch.zeros(2))), "extra"),
    "weight shape": (
        lambda p: edit_tensors(p, lambda t: set_item(t, "w/cond_embed.bias", torch.zeros(65))),
        "cond_embed.bias: got [65], allowed: [64]",
    ),
    "missing input": (lambda p: edit_tensors(p, lambda t: t.pop("in/c")), "'c' is missing"),
    "input shape": (lambda p: edit_tensors(p, lambda t: set_item(t, "in/c", torch.zeros(12, 63))), "do not fit"),
    "output shape": (lambda p: edit_tensors(p, lambda t: set_item(t, "out/t_emb", torch.zeros(12, 63))), "t_emb"),
    "unknown output": (lambda p: edit_tensors(p, lambda t: set_item(t, "out/y", torch.zeros(1))), "a tolerance"),
    "missing output": (lambda p: edit_tensors(p, lambda t: t.pop("out/t_emb")), "t_emb: an output tensor"),
    "no tolerance": (lambda p: edit_card(p, lambda c: c.pop("tolerance")), "tolerance"),
    "odd tolerance": (
        lambda p: edit_card(p, lambda c: set_item(c["tolerance"][0], "rule", {"ulp": 3})),
        "unknown rule ['ulp']",
    ),
    "config value": (
        lambda p: edit_card(p, lambda c: set_item(c["config"], "num_res_blocks", "two")),
        "num_res_blocks: got 'two'",
    ),
    "config field": (lambda p: edit_card(p, lambda c: c["config"].pop("cfg_scales")), "'cfg_scales' is missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_file_is_one_line_and_exit_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = copied(tmp_path)
    spoil, expected = WRONG[case]
    spoil(path)
    assert main([str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(path) in said.err and expected in said.err


def test_exit_codes_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = copied(tmp_path), copied(tmp_path, "mar_diffusion")
    edit_tensors(bad, lambda t: t["w/diffloss.net.cond_embed.weight"].mul_(1.1))
    assert main([str(good)]) == 0
    assert capsys.readouterr().out.startswith("ok   mar_head.json: 6 outputs")
    assert main(["-v", str(good)]) == 0
    assert capsys.readouterr().out.count("\n") == 7
    assert main([str(good), str(bad)]) == 1
    out = capsys.readouterr().out
    assert "FAIL mar_diffusion.json" in out and "loop/25/T1.0/cfg3.0/sample" in out and "sched" not in out
    assert main([str(good), str(bad), str(tmp_path / "none.json")]) == 2


def test_weights_that_are_not_numbers_fail(tmp_path: Path):
    path = copied(tmp_path)
    edit_tensors(path, lambda t: t["w/cond_embed.bias"].fill_(torch.nan))
    assert "forward" in failing(path)


# Other sizes, seeds and schedules: files made by our own code must load and reproduce themselves.

SMALL = {
    "img_size": 24, "vae_stride": 4, "patch_size": 2, "vae_embed_dim": 3, "encoder_embed_dim": 24, "encoder_depth": 1,
    "encoder_num_heads": 3, "decoder_embed_dim": 36, "decoder_depth": 2, "decoder_num_heads": 2, "mlp_ratio": 2.0,
    "class_num": 4, "buffer_size": 3, "diffloss_d": 1, "diffloss_w": 20, "num_sampling_steps": "7", "norm_eps": 1e-6,
    "label_drop_prob": 0.1,
}  # fmt: skip


def small_weights(seed: int, prefix: str = "w/") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = Mar(mar_oracles.mar_config(SMALL))
    return {prefix + key: value + 0.02 * torch.randn_like(value) for key, value in model.state_dict().items()}


def self_made(path: Path, kind: str, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Writes an oracle whose outputs are our own."""

    def write(outputs: dict[str, torch.Tensor]) -> None:
        card = {"oracle": kind, "config": config, "tolerance": [{"rule": {"atol": 1e-4}, "keys": sorted(outputs)}]}
        path.write_text(json.dumps(card))
        given = {f"out/{key}": value.detach().clone().contiguous() for key, value in outputs.items()}
        save_file({**tensors, **given}, path.with_suffix(".safetensors"))

    first = {key.removeprefix("out/"): tensors.pop(key) for key in list(tensors) if key.startswith("out/")}
    write(first or {"tokens": torch.zeros(1)})
    with torch.no_grad():
        write(KINDS[kind](oracles.load_oracle(path)))


def test_other_sizes_of_forward(tmp_path: Path):
    masks = {f"in/mask/{n}": torch.stack([torch.randperm(9) >= n for _ in range(3)]).byte() for n in (0, 4, 9)}
    inputs = {"in/tokens": torch.randn(3, 9, 12), "in/labels": torch.tensor([0, 3, 1])}
    path = tmp_path / "other.json"
    self_made(path, "mar_forward", SMALL, {**small_weights(0), **masks, **inputs})
    assert {finding.key for finding in check(path)} == {
        f"{name}_{side}/{n}" for name, side in (("z", "cond"), ("z", "null"), ("enc", "cond")) for n in (0, 4, 9)
    }
    assert failing(path) == set()
    edit_tensors_without_list(path, lambda t: set_item(t, "in/mask/4", torch.eye(3, 9).byte().cumsum(0).byte()))
    with pytest.raises(OracleError, match="visible tokens per image"):
        check(path)


def edit_tensors_without_list(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path.with_suffix(".safetensors"))
    change(tensors)
    save_file(tensors, path.with_suffix(".safetensors"))


def noise_inputs(names: tuple[str, str]) -> dict[str, torch.Tensor]:
    return {
        "in/labels": torch.tensor([0, 3, 1]),
        "in/orders": torch.stack([torch.randperm(9) for _ in range(3)]),
        f"in/{names[0]}": torch.randn(3, 9, 12),
        f"in/{names[1]}": torch.randn(3, 9, 7, 12),
    }


@pytest.mark.parametrize("num_iter", [1, 5, 9, 20])
def test_other_sizes_of_sample_tokens(num_iter: int, tmp_path: Path):
    run = {"name": "r", "num_iter": num_iter, "cfg": 1.7, "schedule": "linear", "temperature": 0.8, "labels": True}
    config = {"mar": SMALL, "runs": [run], "mask_len_tables": [[9, 20]]}
    path = tmp_path / "other.json"
    self_made(path, "mar_sample_tokens", config, {**small_weights(1), **noise_inputs(("init_noise", "step_noise"))})
    assert failing(path) == set()
    generated = load_file(path.with_suffix(".safetensors"))["out/r/gen_step"]
    assert int(generated.min()) == 0 and int(generated.max()) == num_iter - 1


@pytest.mark.parametrize(("num_iter", "gamma", "ratio"), [(9, 3, 0.0), (5, 2, 0.3), (4, 8, 0.0)])
def test_other_sizes_of_cspd(num_iter: int, gamma: int, ratio: float, tmp_path: Path):
    inputs = noise_inputs(("noise", "inter_noise"))
    run = {
        "name": "r", "num_iter": num_iter, "num_draft": gamma, "ratio": ratio, "cfg": 2.0, "schedule": "linear",
        "temperature": 0.9, "inner_temperature": 20.0,
    }  # fmt: skip
    table = decoding.left_after(decoding.mask_lengths(9, num_iter))
    masked = [9, *table]
    pending, blocks = [], []
    for step in range(num_iter):
        if step > num_iter * ratio:
            pending += list(range(masked[step + 1], masked[step]))
            if step % gamma == 0 or step == num_iter - 1:
                blocks.append(pending)
                pending = []
    tensors = {**small_weights(2, "w/target/"), **small_weights(3, "w/draft/"), **inputs}
    for j, places in enumerate(blocks):
        rows = [(image, int(inputs["in/orders"][image, place])) for image in range(3) for place in places]
        tensors[f"out/r/v{j}/index"] = torch.tensor(sorted(rows))
        tensors[f"in/r/v{j}/uniform_accept"] = torch.rand(len(rows))
        tensors[f"in/r/v{j}/proposal_noise"] = torch.randn(100, len(rows), 12)
        tensors[f"in/r/v{j}/proposal_uniform"] = torch.rand(100, len(rows))
    path = tmp_path / "other.json"
    self_made(path, "cspd_released", {"target": SMALL, "draft": SMALL, "runs": [run]}, tensors)
    findings = check(path)
    assert failing(path) == set()
    made = load_file(path.with_suffix(".safetensors"))
    assert sum(f.key.endswith("/accept") for f in findings) == len(blocks)
    for j in range(len(blocks)):
        assert not made[f"out/r/v{j}/prob"].isnan().any()
    assert made["out/r/calls"][:, 2].sum() == 9 + sum(len(places) for places in blocks)


#: Like the 3B model an odd number of frequencies per half, and a feed-forward width that is rounded up.
CODES = {
    "dim": 36, "n_layer": 1, "n_head": 3, "vocab_size": 11, "block_size": 9, "num_classes": 4, "cls_token_num": 1,
    "multiple_of": 16,
}  # fmt: skip


def code_oracle(path: Path, **change: int) -> None:
    config = CODES | change
    torch.manual_seed(4)
    model = LlamaGen(LlamaGenConfig.model_validate({k: v for k, v in config.items() if k != "cls_token_num"}))
    tensors = {f"w/{key}": 8 * value for key, value in model.state_dict().items()}
    tensors |= {"in/labels": torch.tensor([0, 3]), "in/filter_logits": torch.randn(2, 11)}
    tensors["in/codes"] = torch.randint(11, (2, config["block_size"]))
    runs = {
        "cfg_scales": [1.0, 2.5],
        "greedy": [{"name": "r", "cfg": 2.5, "cfg_interval": 0}],
        "filters": [{"name": "f", "temperature": 0.7, "top_k": 40, "top_p": 0.01}],
    }
    self_made(path, "llamagen_gpt", {"model": config, **runs}, tensors)


def test_other_sizes_of_codes(tmp_path: Path):
    path = tmp_path / "other.json"
    code_oracle(path)
    assert failing(path) == set()
    made = load_file(path.with_suffix(".safetensors"))
    assert torch.allclose(made["out/logits_cached"], made["out/logits_full"], atol=1e-4)
    assert torch.allclose(made["out/logits_cfg/1.0"], made["out/logits_full"], atol=1e-4)
    assert torch.equal(made["out/probs/f"], torch.eye(11)[made["in/filter_logits"].argmax(-1)])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cls_token_num": 120}, "cls_token_num: got 120, allowed: 1"),
        ({"block_size": 10}, "block_size a square, got 10"),
        ({"n_head": 5}, "dim a multiple of 4 n_head = 20, got 36"),
        ({"rope_base": 10000}, "rope_base"),
    ],
)
def test_wrong_sizes_of_codes(change: dict[str, int], expected: str, tmp_path: Path):
    path = tmp_path / "other.json"
    code_oracle(path)
    edit_card(path, lambda card: card["config"]["model"].update(change))
    with pytest.raises(OracleError, match=expected):
        check(path)


# Sizes of the public models.

PARAMETERS = {"base": 207_924_768, "large": 478_326_304, "huge": 942_403_104}


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_is_the_public_model(name: str):
    with torch.device("meta"):
        state = Mar(preset(name)).state_dict()
    assert sum(value.numel() for value in state.values()) == PARAMETERS[name]
    keys = json.loads(shared(f"keys/mar_{name}").read_text())["keys"]
    assert {key: list(value.shape) for key, value in state.items()} == keys


def test_default_autoencoder_is_the_public_kl16():
    with torch.device("meta"):
        state = KlVae(KlVaeConfig()).state_dict()
    assert sum(value.numel() for value in state.values()) == 66_456_019
    keys = json.loads(shared("keys/mar_vae_kl16").read_text())["keys"]
    assert {key: list(value.shape) for key, value in state.items()} == keys


CODE_PARAMETERS = {
    "B": 110_888_448, "L": 342_910_976, "XL": 774_699_520, "XXL": 1_410_972_672, "3B": 3_096_659_200,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_preset_of_codes_is_the_public_model(name: str):
    with torch.device("meta"):
        state = LlamaGen(LlamaGenConfig(**PRESETS[name])).state_dict()
    assert sum(value.numel() for value in state.values()) == CODE_PARAMETERS[name]
    keys = json.loads(shared(f"keys/llamagen_gpt_{name.lower()}_c2i").read_text())["keys"]
    assert {key: list(value.shape) for key, value in state.items()} == keys


@pytest.mark.parametrize(
    ("name", "config", "parameters"),
    [("vq16", VqConfig(), 71_883_403), ("vq8", VqConfig(ch_mult=(1, 2, 2, 4)), 70_109_835)],
)
def test_tokenizer_is_the_public_one(name: str, config: VqConfig, parameters: int):
    with torch.device("meta"):
        state = Vq(config).state_dict()
    assert sum(value.numel() for value in state.values()) == parameters
    public = json.loads(shared(f"keys/llamagen_{name}").read_text())
    assert public["buffers_in_state_dict"] == {"quantize.codebook_used": [65536]}  # of training, left out here
    keys = {key: shape for key, shape in public["keys"].items() if key not in public["buffers_in_state_dict"]}
    assert {key: list(value.shape) for key, value in state.items()} == keys


def test_respacing_adds_up_as_the_public_code_does():
    for steps in range(2, 1001):
        at, kept = 0.0, []
        for _ in range(steps):
            kept.append(round(at))
            at += 999 / (steps - 1)
        assert diffusion.respaced_timesteps(steps) == kept
