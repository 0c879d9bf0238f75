"""What a weights file says about itself comes back, field by field, and is told apart when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vosnet.models import (
    MaskSegmenter,
    ProjectionHead,
    build_encoder,
    load_model,
    save_encoder,
)

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def stored_text(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["vosnet"]))


FIELDS: list[tuple[str, Any, dict[str, Any]]] = [
    ("arch", "resnet50", {"arch": "resnet50", "layer": "layer2"}),
    ("arch", "mast_resnet18", {"arch": "mast_resnet18", "layer": "layer2", "output_stride": 4}),
    ("layer", "layer3", {"layer": "layer3"}),
    ("output_stride", 4, {"layer": "layer2", "output_stride": 4}),
    ("padding", "reflect", {"layer": "layer2", "padding": "reflect"}),
    ("color_space", "lab", {"layer": "layer2", "color_space": "lab"}),
]


@pytest.mark.parametrize(("field", "value", "options"), FIELDS, ids=[f"{f}={v}" for f, v, _ in FIELDS])
def test_what_the_network_is_comes_back(
    tmp_path: Path, field: str, value: Any, options: dict[str, Any]
) -> None:
    encoder = build_encoder(**options)
    save_encoder(tmp_path / "a.safetensors", encoder, {})
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.meta.to_json()[field] == value == getattr(loaded.encoder, field)
    assert stored_text(tmp_path / "a.safetensors")[field] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [("mean", [0.1, 0.2, 0.3]), ("std", [0.4, 0.5, 0.6]), ("preset", "crw"), ("layer", "layer2")],
)
def test_what_is_said_of_its_use_comes_back(tmp_path: Path, field: str, value: Any) -> None:
    save_encoder(tmp_path / "a.safetensors", build_encoder(layer="layer3"), {field: value})
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.meta.to_json()[field] == value
    assert stored_text(tmp_path / "a.safetensors")[field] == value
    assert loaded.encoder.layer == (value if field == "layer" else "layer3")


def test_the_keys_of_a_stored_description_stay(tmp_path: Path) -> None:
    """Files of earlier runs have these keys, and other programs read them."""
    meta = {"recipe": "mine", "recipe_sha256": "ab", "step": 7, "seconds": 1.5, "preset": "unified"}
    segmenter = MaskSegmenter(width=4, mask_dim=4, hidden_dim=4)
    save_encoder(tmp_path / "a.safetensors", build_encoder(layer="layer2"), meta, segmenter=segmenter)
    text = stored_text(tmp_path / "a.safetensors")
    assert len(text.pop("content_sha256")) == 64
    assert text == {
        "arch": "resnet18",
        "layer": "layer2",
        "output_stride": 8,
        "padding": "zeros",
        "color_space": "rgb",
        **IMAGENET,
        **meta,
        "segmenter": {
            "arch": "resnet18",
            "output_stride": 8,
            "width": 4,
            "depth": None,
            "mask_dim": 4,
            "hidden_dim": 4,
            "skips": True,
            "upsample": True,
            "residual": False,
        },
    }


def test_a_description_without_the_usual_fields_means_the_usual_values(tmp_path: Path) -> None:
    tensors = {name: t.contiguous() for name, t in build_encoder(layer="layer3").state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors", {"vosnet": json.dumps({"layer": "layer3"})})
    loaded = load_model(tmp_path / "a.safetensors")
    expected = {"arch": "resnet18", "output_stride": 8, "padding": "zeros", "color_space": "rgb", **IMAGENET}
    values = loaded.meta.to_json()
    assert {key: values[key] for key in expected} == expected
    assert values["preset"] is None


@pytest.mark.parametrize("text", ["{", "[]", "3", '"word"'])
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    tensors = {name: t.contiguous() for name, t in build_encoder(layer="layer2").state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors", {"vosnet": text})
    with pytest.raises(ValueError, match=r"E27[34].*a\.safetensors"):
        load_model(tmp_path / "a.safetensors")


SETTINGS: list[dict[str, Any]] = [
    {"arch": "resnet50", "depth": 1},
    {"output_stride": 4},
    {"width": 8},
    {"depth": 1},
    {"mask_dim": 6},
    {"hidden_dim": 12},
    {"skips": False},
    {"upsample": False},
    {"residual": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting_of_the_mask_networks_comes_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    segmenter = MaskSegmenter(**{"width": 4, "mask_dim": 4, "hidden_dim": 4, **settings}).eval()
    stride = settings.get("output_stride", 8)
    encoder = build_encoder(layer="layer2", output_stride=stride)
    save_encoder(tmp_path / "a.safetensors", encoder, {}, segmenter=segmenter, half=False)
    loaded = load_model(tmp_path / "a.safetensors").segmenter()
    assert loaded.settings == segmenter.settings
    assert not loaded.training
    images, masks = torch.randn(1, 3, 32, 32), torch.rand(1, 2, 32, 32)
    support = torch.randn(1, 2, segmenter.mask_dim, 32 // stride, 32 // stride)
    with torch.no_grad():
        got, expected = (net.refine(images, support, masks, masks) for net in (loaded, segmenter))
    torch.testing.assert_close(got, expected)


def test_a_head_beside_the_encoder_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    head = ProjectionHead(128, 8, 4)
    save_encoder(tmp_path / "a.safetensors", build_encoder(layer="layer2"), {}, head=head, half=False)
    plain, with_head = (
        load_model(tmp_path / "a.safetensors", layer=layer).encoder for layer in (None, "head")
    )
    assert plain.head is None
    assert with_head.head is not None
    assert torch.equal(with_head.head.conv2.weight, head.conv2.weight)
    assert torch.equal(with_head.head.conv1.bias, head.conv1.bias)


def test_a_run_folders_own_model_comes_before_its_checkpoints(tmp_path: Path) -> None:
    for seed, place in enumerate(("", "checkpoints/last", "checkpoints/step_3")):
        save_encoder(tmp_path / place / "model.safetensors", build_encoder(layer="layer2", seed=seed), {})
    assert load_model(tmp_path).source.startswith(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    assert "last" in load_model(tmp_path).source


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("container", ["state_dict", "model", "teacher", None])
def test_wrapped_state_dicts_are_found_in_any_container(
    tmp_path: Path, wrapper: str, container: str | None
) -> None:
    state = build_encoder(layer="layer2", seed=5).state_dict()
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in state.items()}
    torch.save({container: wrapped, "epoch": 3} if container else wrapped, tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth").encoder
    assert loaded.layer == "layer2"
    assert all(torch.equal(t, state[name]) for name, t in loaded.state_dict().items())


def test_a_bottleneck_network_is_recognized_by_its_tensors(tmp_path: Path) -> None:
    torch.save(build_encoder("resnet50", layer="layer2").state_dict(), tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth")
    assert (loaded.encoder.arch, loaded.encoder.layer) == ("resnet50", "layer2")
    assert "(resnet50, layer2)" in loaded.source


def test_the_mask_networks_come_from_the_read_that_brought_the_encoder(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    segmenter = MaskSegmenter(width=4, mask_dim=4, hidden_dim=4)
    save_encoder(path, build_encoder(layer="layer2"), {}, segmenter=segmenter)
    loaded = load_model(path)
    path.unlink()
    assert loaded.segmenter().settings == segmenter.settings


def test_loading_leaves_the_global_random_state_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    segmenter = MaskSegmenter(width=4, mask_dim=4, hidden_dim=4)
    save_encoder(path, build_encoder(layer="layer2"), {}, segmenter=segmenter)
    before = torch.random.get_rng_state()
    loaded = load_model(path)
    networks = [loaded.encoder, loaded.segmenter(), load_model("random", layer="layer2").encoder]
    assert torch.equal(before, torch.random.get_rng_state())
    for network in networks:
        assert all(p.device.type == "cpu" and p.requires_grad for p in network.parameters())
        assert {t.dtype for t in network.state_dict().values()} == {torch.float32, torch.int64}
