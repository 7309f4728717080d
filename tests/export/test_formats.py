"""OpenCLIP's folder and the ONNX one encode what the SentenceTransformer folder encodes; nothing else is touched."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from timm.data.transforms_factory import create_transform
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, PreTrainedTokenizerFast

from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.errors import ExportError
from ito_ray.export import onnx_folder
from ito_ray.export.card import Origin, write_origin
from ito_ray.export.checks import write_manifest
from ito_ray.export.hf_clip_folder import comparable_images, write_hf_clip
from ito_ray.export.load import load_encoder
from ito_ray.export.onnx_encoder import OnnxEncoder
from ito_ray.export.open_clip_folder import write_open_clip
from ito_ray.export.parity import PROBE_TEXTS, probe_images
from ito_ray.export.sentence_transformer import export_sentence_transformer
from ito_ray.models.dual_encoder import DualEncoder
from pipelines.export import main
from tests.export.tiny import BERT, CAPTIONS, Exported, export

CLIP = TextTowerConfig(kind="clip", width=32, layers=1, heads=2, context=12, pool="last")
RESNET = ImageTowerConfig(name="resnet10t", size=64)
TEXTS = [*PROBE_TEXTS, "two green boats"]


class Made:
    """A trained encoder's folder, and what stock sentence-transformers encodes with it."""

    def __init__(self, folder: Path, model: DualEncoder) -> None:
        self.folder, self.model = folder, model
        self.tokenizer = folder / "text_0_Transformer"
        self.stock = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self.images = [*probe_images(seed=3), *probe_images(seed=4)[:1]]
        assert len(self.images) == len(TEXTS)  # so that both are cut into batches alike

    def assert_same(self, image_ND: Any, text_ND: Any, texts: Sequence[str] = TEXTS) -> None:
        inputs: list[Any] = [{"text": text} for text in texts]
        np.testing.assert_allclose(image_ND, self.stock.encode(self.images), atol=1e-5)
        np.testing.assert_allclose(text_ND, self.stock.encode(inputs), atol=1e-5)


def _end_is_highest() -> Any:
    """As CLIP's tokenizer, whose end token pads and has the highest id, but small."""
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    entries = ["[UNK]", *words, "[START]", "[END]"]
    core = Tokenizer(models.WordLevel({entry: number for number, entry in enumerate(entries)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, entries.index(token)) for token in ("[START]", "[END]")]
    core.post_processor = processors.TemplateProcessing(single="[START] $A [END]", special_tokens=ends)
    special = {"bos_token": "[START]", "eos_token": "[END]", "pad_token": "[END]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=CLIP.context, **special)


def _clip(parent: Path) -> Made:
    tokenizer = _end_is_highest()
    tokenizer.save_pretrained(parent / "tokenizer")
    image = ImageTowerConfig(
        name="vit_base_patch16_clip_224",
        size=45,
        kwargs={"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 9},
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
    )
    torch.manual_seed(0)
    model = DualEncoder(ModelConfig(image=image, text=CLIP, embed_dim=24), tokenizer)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases start at 1 and 0, where an exchange would not show
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    folder = export_sentence_transformer(model, parent / "tokenizer", parent / "st")
    write_origin(folder, Origin(data_licence="CC BY 4.0"))
    return Made(folder, model)


def _bert(parent: Path) -> Made:
    made: Exported = export(parent, image=RESNET, text=BERT.model_copy(update={"layers": 1}))
    return Made(made.folder, made.model)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("pair", ["clip", "bert"])
def test_the_folder_gives_the_trained_weights_back(pair: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(pair)
    loaded = load_encoder(made.folder).state_dict()
    trained = made.model.state_dict()
    assert set(loaded) == set(trained)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())


def test_a_pretrained_text_tower_is_loaded_back(tmp_path: Path) -> None:
    first = export(tmp_path)
    text = TextTowerConfig(kind="pretrained", source=str(first.folder / "text_0_Transformer"), context=16, pool="mean")
    made = export(tmp_path / "second", text=text)
    loaded = load_encoder(made.folder)
    assert loaded.text.cfg.source == str(made.folder / "text_0_Transformer")
    trained = made.model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert ".pooler." in name or torch.equal(tensor, trained[name]), name


def test_other_folders_and_exchanged_weights_are_refused(bert: Made, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no manifest\.json"):
        load_encoder(tmp_path)
    (tmp_path / "other").mkdir()
    write_manifest(tmp_path / "other", "sentence_transformer")
    with pytest.raises(ExportError, match="is not a SentenceTransformer folder that ito_ray exported"):
        load_encoder(tmp_path / "other")
    copy = Path(shutil.copytree(bert.folder, tmp_path / "copy"))
    weights = copy / "text_2_Dense" / "model.safetensors"
    save_file({"linear.weight": torch.zeros(24, 31)}, weights)
    with pytest.raises(ExportError, match=r"text_2_Dense/model\.safetensors in .* is changed since the export"):
        load_encoder(copy)
    write_manifest(copy, "sentence_transformer")
    with pytest.raises(ExportError, match=r"1 are missing, unknown or of another shape, first text\.proj\.weight"):
        load_encoder(copy)


def test_open_clip_encodes_the_same_at_an_odd_size(clip: Made, tmp_path: Path) -> None:
    made, out = clip, tmp_path
    write_open_clip(load_encoder(made.folder), made.tokenizer, out)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    model.eval()
    with torch.inference_mode():
        image_ND = model.encode_image(torch.stack([preprocess(image) for image in made.images]), normalize=True)
        text_ND = model.encode_text(tokenizer(TEXTS), normalize=True)
    made.assert_same(image_ND, text_ND)
    assert torch.equal(model.logit_scale, made.model.logit_scale)


def test_hf_clip_encodes_the_same_through_its_processor(clip: Made, tmp_path: Path) -> None:
    write_hf_clip(load_encoder(clip.folder), clip.tokenizer, tmp_path)
    model: Any = CLIPModel.from_pretrained(tmp_path, local_files_only=True)
    processor: Any = AutoProcessor.from_pretrained(tmp_path, local_files_only=True, backend="pil")
    images = comparable_images(clip.model.image.cfg.size)
    inputs = processor(text=TEXTS, images=images, padding=True, truncation=True, return_tensors="pt")
    ids = AutoTokenizer.from_pretrained(clip.tokenizer, local_files_only=True)(TEXTS, padding=True, truncation=True)
    assert inputs["input_ids"].tolist() == ids["input_ids"]
    with torch.inference_mode():
        answer = model.eval()(**inputs)
    expected = clip.stock.encode(images)
    np.testing.assert_allclose(answer.image_embeds, expected, atol=1e-5)
    np.testing.assert_allclose(answer.text_embeds, clip.stock.encode([{"text": one} for one in TEXTS]), atol=1e-5)
    assert torch.equal(model.logit_scale, clip.model.logit_scale)
    assert type(processor).__name__ == "CLIPProcessor"


def test_what_clip_processors_cut_differently_is_known(clip: Made, tmp_path: Path) -> None:
    """Of every size the same square, or one pixel off it; comparable_images are of the first kind."""
    size = clip.model.image.cfg.size
    write_hf_clip(clip.model, clip.tokenizer, tmp_path)
    processor: Any = AutoProcessor.from_pretrained(tmp_path, local_files_only=True, backend="pil")
    transform: Any = create_transform(
        input_size=size, is_training=False, crop_pct=1.0, crop_mode="center", interpolation="bicubic",
        mean=clip.model.image.mean, std=clip.model.image.std,
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (2 * size, 2 * size, 3), np.uint8)
    for width in range(size, size + 9):
        image = Image.fromarray(noise[:size, :width])
        ours, theirs = transform(image).numpy(), processor(images=[image], return_tensors="np")["pixel_values"][0]
        if (width - size) % 4 == 3:  # theirs begins one pixel further left
            np.testing.assert_allclose(ours[..., :-1], theirs[..., 1:], atol=1e-6)
        else:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert [image.size for image in comparable_images(32)] == [(64, 64), (98, 41), (33, 260), (301, 300), (5, 7)]
    for image in comparable_images(size):
        theirs = processor(images=[image], return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(transform(image).numpy(), theirs, atol=1e-6)


def test_towers_without_a_counterpart_in_clip_are_refused(bert: Made, clip: Made, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"OpenCLIP: .*resnet10t is not a Vision Transformer"):
        write_open_clip(load_encoder(bert.folder), bert.tokenizer, tmp_path)
    with pytest.raises(ExportError, match=r"CLIPModel: .*resnet10t is not a Vision Transformer"):
        write_hf_clip(load_encoder(bert.folder), bert.tokenizer, tmp_path)
    legacy = load_encoder(clip.folder)
    legacy.text.net.config.eos_token_id = 2
    with pytest.raises(ExportError, match="end token is 2, for which CLIPTextModel"):
        write_hf_clip(legacy, clip.tokenizer, tmp_path)
    pooled = load_encoder(clip.folder)
    pooled.text.cfg = pooled.text.cfg.model_copy(update={"pool": "mean"})
    with pytest.raises(ExportError, match=r"model\.text\.pool=mean: CLIP reads the end token"):
        write_hf_clip(pooled, clip.tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_of_other_formats_are_refused(clip: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--encoder", str(clip.folder), "--out", str(tmp_path / "out"), "--to"]
    assert main([*command, "hf_clip", "--int8-text"]) == 2
    assert "--int8-text is for --to onnx, not --to hf_clip" in capsys.readouterr().err
    assert main([*command, "onnx", "--data", "x.tar"]) == 2
    assert "--data is what --int8-text and --int8-image are measured on" in capsys.readouterr().err
    assert main([*command, "onnx", "--int8-image"]) == 2
    assert "--int8-image is measured on photographs" in capsys.readouterr().err
    assert main([*command, "onnx", "--int8-text", "--data", str(tmp_path / "none.tar")]) == 2
    assert "--data" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_tower_too_large_for_an_onnx_file_is_refused(
    bert: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_folder, "LIMIT", 1000)
    with pytest.raises(ExportError, match=r"model\.image\.name=resnet10t has .* GB of weights"):
        onnx_folder.write_onnx(load_encoder(bert.folder), bert.tokenizer, tmp_path)


@pytest.mark.slow
def test_a_tower_that_torch_cannot_export_is_refused(
    bert: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def branch(image_BCHW: Tensor) -> Tensor:
        return image_BCHW.mean((2, 3))[:, :1].repeat(1, 24) * (2 if image_BCHW.mean().item() > 0 else 1)

    model = load_encoder(bert.folder)
    monkeypatch.setattr(model, "encode_image", branch)
    with pytest.raises(ExportError, match=r"model\.image\.name=resnet10t cannot be written as ONNX"):
        onnx_folder.write_onnx(model, bert.tokenizer, tmp_path)


def test_an_out_folder_with_something_else_is_left_alone(
    bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for manifest in (None, {"kind": "onnx", "sha256": {}}, {"kind": "open_clip", "sha256": {"mine.txt": ""}}):
        if manifest:
            (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert main(["--encoder", str(bert.folder), "--to", "onnx", "--out", str(tmp_path)]) == 2
        assert "which no earlier export to onnx wrote" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert main(["--encoder", str(tmp_path), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "it has no modules.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _assert_manifest_is_whole(out: Path) -> None:
    sums = json.loads((out / "manifest.json").read_text())["sha256"]
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
    del files["manifest.json"]
    assert sums == files


@pytest.mark.slow
def test_the_hf_clip_pipeline_compares_with_transformers_alone(
    clip: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hf"
    assert main(["--encoder", str(clip.folder), "--to", "hf_clip", "--out", str(out)]) == 0, capsys.readouterr().err
    assert f'CLIPModel.from_pretrained("{out}")' in capsys.readouterr().out
    _assert_manifest_is_whole(out)
    assert {path.suffix for path in out.iterdir()} <= {".json", ".md", ".safetensors", ".txt"}
    assert "| licence | CC BY 4.0 |" in (out / "README.md").read_text()


@pytest.mark.slow
def test_the_open_clip_pipeline_replaces_an_earlier_export(
    clip: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    out.mkdir()
    (out / "old.txt").write_text("from an earlier export")
    (out / "manifest.json").write_text(json.dumps({"kind": "open_clip", "sha256": {"old.txt": ""}}))
    assert main(["--encoder", str(clip.folder), "--to", "open_clip", "--out", str(out)]) == 0
    assert f"local-dir:{out}" in capsys.readouterr().out
    assert not (out / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    _assert_manifest_is_whole(out)


def _shard(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, (image, caption) in enumerate(zip(probe_images(), CAPTIONS, strict=False)):
            picture = io.BytesIO()
            image.save(picture, "PNG")
            for suffix, data in (("png", picture.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def _assert_int8_is_measured(out: Path, printed: str) -> None:
    """What is written down is what the two files give."""
    described = json.loads((out / "preprocess.json").read_text())
    measured = described["int8_measured"]["towers"]["text"]
    whole, small = (OnnxEncoder(out, int8_text=small).encode_texts(CAPTIONS) for small in (False, True))
    cosine_N = (whole * small).sum(1)
    assert measured["inputs"] == len(CAPTIONS)
    assert measured["cosine_mean"] == pytest.approx(cosine_N.mean(), abs=1e-6)
    assert measured["cosine_min"] == pytest.approx(cosine_N.min(), abs=1e-6)
    assert 0.9 < measured["cosine_min"] < 1
    assert measured["int8_bytes"] == (out / described["text"]["int8_file"]).stat().st_size < measured["float_bytes"]
    images = OnnxEncoder(out).encode_images(probe_images()[: len(CAPTIONS)])
    right = ((images @ small.T).argmax(1) == np.arange(len(CAPTIONS))).mean()
    assert described["int8_measured"]["recall"]["int8"]["image_to_text_r1"] == right
    card = (out / "README.md").read_text("utf-8")
    assert f"- int8 text tower: {measured['float_bytes'] / 1e6:.1f} →" in card.split("how it came to be")[0]
    assert f"Measured on\n{described['int8_measured']['machine']}:\n\n- int8" in card and "## Data" in card
    _assert_no_processor_saturates(out / described["text"]["int8_file"])
    assert "the pairs of pairs.tar" in printed and "R@1" in printed and "cosine to float 0.9" in printed


def _assert_no_processor_saturates(file: Path) -> None:
    """Without VNNI two products of a uint8 activation and an int8 weight are added in 16 bits, which saturate."""
    weights = [
        onnx.numpy_helper.to_array(weight).astype(int)
        for weight in onnx.load(str(file)).graph.initializer
        if weight.data_type == onnx.TensorProto.INT8
    ]
    assert sum(weight.size for weight in weights) > 1000
    assert max(2 * 255 * np.abs(weight).max(initial=0) for weight in weights) < 2**15
    assert max(np.abs(weight).max(initial=0) for weight in weights) >= 60, "and yet 7 bits are used"


@pytest.mark.slow
def test_the_onnx_pipeline_encodes_the_same_in_any_batch(
    bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "onnx"
    data = _shard(tmp_path / "pairs.tar")
    command = ["--encoder", str(bert.folder), "--to", "onnx", "--out", str(out), "--int8-text", "--data", str(data)]
    assert main(command) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    _assert_int8_is_measured(out, printed)
    _assert_manifest_is_whole(out)
    encoder = OnnxEncoder(out)
    for batch in (1, 2, len(TEXTS)):
        starts = range(0, len(TEXTS), batch)
        bert.assert_same(
            np.concatenate([encoder.encode_images(bert.images[start : start + batch]) for start in starts]),
            np.concatenate([encoder.encode_texts(TEXTS[start : start + batch]) for start in starts]),
        )
    gray, same = Image.new("L", (50, 40), 90), Image.new("RGB", (50, 40), (90, 90, 90))
    np.testing.assert_array_equal(encoder.encode_images([gray]), encoder.encode_images([same]))
    package = str(Path(torch.__file__).parent).encode()
    assert not [path.name for path in out.iterdir() if package in path.read_bytes()]
