"""Feature extraction: normalization, resizing, precision."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from vosnet.errors import InputError, UsageError
from vosnet.models import CallableEncoder, build_encoder, inference
from vosnet.models.inference import FeatureExtractor, can_autocast_bfloat16
from vosnet.transforms import IMAGENET_MEAN, IMAGENET_STD, scaled_lab

FRAME = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), np.uint8)


def test_the_encoder_sees_normalized_color_channels() -> None:
    seen = []
    extractor = FeatureExtractor(CallableEncoder(lambda x: (seen.append(x), x[..., ::8, ::8])[1], 8))
    extractor(FRAME)
    expected = (FRAME[0] / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_frames_are_resized_when_asked() -> None:
    extractor = FeatureExtractor(CallableEncoder(lambda x: x[..., ::8, ::8], 8))
    assert extractor(FRAME, (20, 28)).shape == (1, 3, 3, 4)


def test_bfloat16_features_point_in_the_same_direction() -> None:
    encoder = build_encoder(layer="layer3")
    full = FeatureExtractor(encoder, precision="float32")(FRAME)
    half = FeatureExtractor(encoder, precision="bfloat16")(FRAME)
    assert full.dtype == half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.999


def test_compiled_extraction_is_one_graph_for_three_clip_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: real(module, backend=counter, **options))
    torch._dynamo.reset()
    encoder = build_encoder(layer="layer2")
    compiled, plain = FeatureExtractor(encoder, compiled=True), FeatureExtractor(encoder)
    for height, width in ((40, 56), (48, 33), (64, 80)):
        frames = np.zeros((1, height, width, 3), np.uint8)
        torch.testing.assert_close(compiled(frames), plain(frames))
    assert counter.frame_count == 1


def test_f40_precision_is_chosen_by_what_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(layer="layer2")
    monkeypatch.setattr(inference, "can_autocast_bfloat16", lambda device: "no unit for it")
    assert FeatureExtractor(encoder).precision_note == "float32: no unit for it"
    monkeypatch.setattr(inference, "can_autocast_bfloat16", lambda device: None)
    assert FeatureExtractor(encoder).precision_note == "bfloat16"
    assert FeatureExtractor(encoder, precision="float32").precision_note == "float32, as asked"
    assert "not one of ours" in FeatureExtractor(CallableEncoder(lambda x: x, 1)).precision_note


def test_f40_a_processor_without_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert "AVX-512 BF16" in str(can_autocast_bfloat16(torch.device("cpu")))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert can_autocast_bfloat16(torch.device("cpu")) is None


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)],
)
def test_frames_must_be_uint8_rgb(frames: np.ndarray) -> None:
    extractor = FeatureExtractor(CallableEncoder(lambda x: x, 1))
    with pytest.raises(InputError, match="E280"):
        extractor(frames)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="E163"):
        FeatureExtractor(build_encoder(layer="layer2"), precision="fp8")


def test_an_encoder_for_lab_sees_lab() -> None:
    seen = []
    extractor = FeatureExtractor(
        CallableEncoder(lambda x: (seen.append(x), x[..., ::8, ::8])[1], 8), color_space="lab"
    )
    extractor(FRAME)
    expected = scaled_lab(torch.from_numpy(FRAME).permute(0, 3, 1, 2))
    torch.testing.assert_close(seen[0], expected)
    assert FeatureExtractor(build_encoder(layer="layer2", color_space="lab")).color_space == "lab"
