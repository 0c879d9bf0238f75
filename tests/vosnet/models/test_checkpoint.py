"""Weights files: round trip, other people's layouts, damage and malice."""

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vosnet.errors import InputError
from vosnet.files import sha256
from vosnet.models import Encoder, ProjectionHead, build_encoder, load_model, save_encoder
from vosnet.models import checkpoint as checkpoint_module


def plain_state(layer: str = "layer4", **options: Any) -> dict[str, Tensor]:
    state = build_encoder(layer=layer, seed=7, **options).state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if "bn" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return state


def vfs_name(name: str) -> str:
    """ConvModule names of mmaction: `layer1.0.conv1.conv.weight`, `layer1.0.conv1.bn.bias`."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.startswith("conv"):
            parts[i] = f"{part}.conv"
        elif part.startswith("bn"):
            parts[i] = f"conv{part[2:]}.bn"
        elif part == "downsample":
            parts[i : i + 2] = ["downsample", {"0": "conv", "1": "bn"}[parts[i + 1]]]
            break
    return "backbone." + ".".join(parts)


def crw_name(name: str) -> str:
    """Reflect-padded convolutions sit behind a padding layer: `layer1.0.conv1.1.weight`."""
    padded = "conv" in name
    return "encoder.model." + (name.replace(".weight", ".1.weight") if padded else name)


def foreign(kind: str) -> dict[str, Any]:
    state = plain_state()
    head = ProjectionHead(512, 512, 128).state_dict()
    if kind == "dul":
        model = {f"fast_net.backbone.{name}": tensor for name, tensor in state.items()}
        model |= {f"fast_net.emb_q.{name}": tensor for name, tensor in head.items()}
        return {"model": model, "opt": {"lr": 1e-4}, "epoch": 60, "score": 0.69}
    if kind == "dul-parallel":
        return {"model": {f"module.{name}": tensor for name, tensor in foreign("dul")["model"].items()}}
    if kind == "crw":
        model = {f"encoder.model.{name}": tensor for name, tensor in state.items()}
        return {"model": model | {"selfsim_fc.0.weight": torch.zeros(128, 512)}, "epoch": 1}
    if kind == "crw-scratch":
        model = {crw_name(name): tensor for name, tensor in state.items()}
        return {"model": model, "args": argparse.Namespace(lr=1e-4)}
    if kind == "vfs":
        model = {vfs_name(name): tensor for name, tensor in state.items()}
        return {"state_dict": model | {"img_head.projection_fcs.0.weight": torch.zeros(4, 512)}, "meta": {}}
    if kind == "dino":
        model = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
        return {"student": {}, "teacher": model | {"module.head.mlp.0.weight": torch.zeros(4, 512)}}
    return {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def assert_same_weights(encoder: Encoder, state: dict[str, Tensor]) -> None:
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "layer", "preset", "padding"),
    [
        ("dul", "layer4", "dul", "zeros"),
        ("dul-parallel", "layer4", "dul", "zeros"),
        ("crw", "layer3", "crw", "zeros"),
        ("crw-scratch", "layer3", "crw", "reflect"),
        ("vfs", "layer3", "vfs", "zeros"),
        ("dino", "layer4", None, "zeros"),
        ("torchvision", "layer4", None, "zeros"),
    ],
)
def test_f24_the_authors_checkpoints_are_read(
    tmp_path: Path, kind: str, layer: str, preset: str | None, padding: str
) -> None:
    torch.save(foreign(kind), tmp_path / "theirs.pth")
    loaded = load_model(tmp_path / "theirs.pth")
    assert (loaded.meta.layer, loaded.meta.preset, loaded.meta.padding) == (layer, preset, padding)
    assert (loaded.encoder.layer, loaded.encoder.padding, loaded.encoder.output_stride) == (layer, padding, 8)
    assert_same_weights(loaded.encoder, plain_state())
    assert not loaded.encoder.training


def test_the_head_of_dul_can_be_read(tmp_path: Path) -> None:
    torch.save(foreign("dul"), tmp_path / "dul.pth")
    encoder = load_model(tmp_path / "dul.pth", layer="head").encoder
    assert encoder.feature_dim == 128
    assert encoder.head is not None


def test_what_is_saved_comes_back_with_its_description(tmp_path: Path) -> None:
    encoder = build_encoder("resnet50", layer="layer3", output_stride=4, padding="reflect", seed=5)
    meta = {"preset": "crw", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "steps": 12}
    save_encoder(tmp_path / "ours.safetensors", encoder, meta, half=False)
    loaded = load_model(tmp_path / "ours.safetensors")
    assert_same_weights(loaded.encoder, encoder.state_dict())
    expected = {"arch": "resnet50", "layer": "layer3", "output_stride": 4, "padding": "reflect", **meta}
    assert expected.items() <= loaded.meta.to_json().items()
    assert "ours.safetensors" in loaded.source


def test_half_precision_halves_the_file_and_keeps_what_does_not_fit(tmp_path: Path) -> None:
    encoder = build_encoder(layer="layer2")
    encoder.bn1.running_var.fill_(1e6)
    save_encoder(tmp_path / "half.safetensors", encoder, {})
    save_encoder(tmp_path / "full.safetensors", encoder, {}, half=False)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "full.safetensors")]
    assert sizes[0] < 0.55 * sizes[1]
    loaded = load_model(tmp_path / "half.safetensors").encoder
    assert loaded.bn1.running_var[0] == 1e6
    torch.testing.assert_close(loaded.conv1.weight, encoder.conv1.weight, rtol=1e-3, atol=1e-6)


def test_a_head_saved_beside_the_encoder_is_read_on_request(tmp_path: Path) -> None:
    encoder, head = build_encoder(layer="layer3"), ProjectionHead(256, 32, 16)
    save_encoder(tmp_path / "run.safetensors", encoder, {}, head=head)
    assert load_model(tmp_path / "run.safetensors").encoder.feature_dim == 256
    with_head = load_model(tmp_path / "run.safetensors", layer="head").encoder
    assert (with_head.feature_dim, with_head.stage) == (16, "layer3")


def test_a_shallower_layer_of_a_deeper_file_can_be_read(tmp_path: Path) -> None:
    save_encoder(tmp_path / "deep.safetensors", build_encoder(layer="layer4"), {}, half=False)
    encoder = load_model(tmp_path / "deep.safetensors", layer="layer2").encoder
    assert_same_weights(encoder, build_encoder(layer="layer2").state_dict())


def test_a_file_without_description_is_read_at_its_deepest_stage(tmp_path: Path) -> None:
    save_file(plain_state("layer3"), tmp_path / "bare.safetensors")
    loaded = load_model(tmp_path / "bare.safetensors", default_layer="layer4")
    assert loaded.encoder.layer == "layer3"
    assert "layer3" in loaded.source


def test_a_run_folder_means_its_last_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        save_encoder(
            tmp_path / f"checkpoints/step_{step}/model.safetensors",
            build_encoder(layer="layer2", seed=step),
            {},
        )
    assert_close_conv(load_model(tmp_path).encoder, 10)
    save_encoder(tmp_path / "checkpoints/last/model.safetensors", build_encoder(layer="layer2", seed=1), {})
    assert_close_conv(load_model(tmp_path).encoder, 1)


def assert_close_conv(encoder: Encoder, seed: int) -> None:
    expected = build_encoder(layer="layer2", seed=seed).conv1.weight
    torch.testing.assert_close(encoder.conv1.weight, expected, rtol=1e-3, atol=1e-5)


def test_random_is_named_with_its_seed() -> None:
    loaded = load_model("random", layer="layer2", seed=3)
    assert loaded.source == "random encoder (seed 3)"
    assert_same_weights(loaded.encoder, build_encoder(layer="layer2", seed=3).state_dict())


def test_no_path_means_the_shipped_weights_or_says_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "shipped_weights", lambda: None)
    assert load_model(None, layer="layer2").source == (
        "random encoder (seed 0): no trained weights are installed"
    )
    file = tmp_path / "shipped.safetensors"
    save_encoder(file, build_encoder(layer="layer2"), {"preset": "dul"})
    monkeypatch.setattr(checkpoint_module, "shipped_weights", lambda: file)
    assert load_model(None).source.startswith(str(file))
    assert load_model("shipped").source == load_model(None).source


def test_f24_a_network_that_does_not_fit_lists_missing_and_unexpected_parts(tmp_path: Path) -> None:
    state = plain_state("layer3")
    del state["layer3.1.conv1.weight"], state["layer3.1.conv2.weight"]
    state["layer1.0.conv9.weight"] = torch.zeros(1)
    state["bn1.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "odd.pth")
    message = str(caught.value)
    assert message.startswith("E274")
    assert "missing layer3 (2 tensors); unexpected layer1 (1 tensors)" in message
    assert "bn1.bias is [3] instead of [64]" in message
    with pytest.raises(InputError, match=r"missing .*layer4 \(25 tensors\)"):
        load_model(tmp_path / "odd.pth", layer="layer4")


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_f24_a_truncated_file_is_refused(tmp_path: Path, keep: int, suffix: str) -> None:
    file = tmp_path / f"cut.{suffix}"
    if suffix == "pth":
        torch.save(plain_state("layer2"), file)
    else:
        save_encoder(file, build_encoder(layer="layer2"), {})
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"E271 .*cut\.{suffix}"):
        load_model(file)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9999])
def test_f24_a_flipped_bit_in_our_file_is_found(tmp_path: Path, place: float) -> None:
    file = tmp_path / "model.safetensors"
    save_encoder(file, build_encoder(layer="layer2"), {})
    flip_bit(file, place)
    with pytest.raises(InputError, match=r"E273 .*SHA-256"):
        load_model(file)


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_f24_a_manifest_beside_the_file_finds_a_flipped_bit(tmp_path: Path, form: str) -> None:
    file = tmp_path / "model.pth"
    torch.save(plain_state("layer2"), file)
    digest = sha256(file)
    entry = {"files": {file.name: {"sha256": digest}}} if form == "nested" else {file.name: digest}
    (tmp_path / "manifest.json").write_text(json.dumps(entry))
    load_model(file)
    flip_bit(file, 0.5)
    with pytest.raises(InputError, match=r"E273 .*manifest\.json"):
        load_model(file)


def flip_bit(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04garbage", os.urandom(4096)],
    ids=["empty", "text", "zip", "noise"],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_f24_a_foreign_format_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="x.*no readable"):
        load_model(tmp_path / name)


def test_f24_a_file_without_a_resnet_is_refused(tmp_path: Path) -> None:
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3)}, tmp_path / "vit.pth")
    with pytest.raises(InputError, match="E274 .*holds no ResNet"):
        load_model(tmp_path / "vit.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(InputError, match="E274"):
        load_model(tmp_path / "list.pth")


def test_a_missing_path_says_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'E270 .*does not exist\. Give a file, a run folder, or "random"'):
        load_model(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match="E270 .*holds no model.safetensors"):
        load_model(tmp_path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("container", ["zip", "legacy", "bare", "namespace"])
def test_f25_a_malicious_pickle_is_never_executed(tmp_path: Path, container: str) -> None:
    file, canary = tmp_path / "evil.pth", tmp_path / "canary"
    payload: Any = Payload(canary)
    if container == "bare":
        file.write_bytes(pickle.dumps(payload, protocol=2))
    elif container == "namespace":
        torch.save({"args": argparse.Namespace(x=payload), "model": plain_state("layer2")}, file)
    else:
        model = {"model": plain_state("layer2"), "epoch": payload}
        torch.save(model, file, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(InputError, match=r"E27[12] .*evil\.pth"):
        load_model(file)
    assert not canary.exists()


def test_color_space_and_masts_last_convolution_survive_the_round_trip(tmp_path: Path) -> None:
    encoder = build_encoder("mast_resnet18_pooled", layer="layer3", color_space="lab", seed=3).eval()
    save_encoder(tmp_path / "mast.safetensors", encoder, {}, half=False)
    loaded = load_model(tmp_path / "mast.safetensors")
    assert (loaded.encoder.color_space, loaded.meta.color_space, loaded.meta.output_stride) == (
        "lab",
        "lab",
        4,
    )
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded.encoder(image), encoder(image))
    stage = load_model(tmp_path / "mast.safetensors", layer="layer2")
    assert stage.encoder(image).shape == (1, 128, 8, 8)


def test_a_random_network_of_mast_sees_lab_and_others_rgb() -> None:
    assert load_model("random", arch="mast_resnet18", layer="layer2").encoder.color_space == "lab"
    assert load_model("random", layer="layer2").encoder.color_space == "rgb"
