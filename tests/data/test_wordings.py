"""Other words for the instructions: half of the training episodes have them, and none means two things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from statevla.config import Config
from statevla.data import FrameCache, open_frame_cache, split_episodes
from statevla.data.wordings import read_wordings, reword
from statevla.errors import UserError
from statevla.training.setup import prepare

SHIPPED = Path(__file__).parents[2] / "conf" / "wordings" / "libero.yaml"


@pytest.fixture
def cache(tiny_config: Config) -> FrameCache:
    return open_frame_cache(tiny_config, progress=False)


def written(folder: Path, tree: object) -> Path:
    file = folder / "wordings.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def told(cache: FrameCache) -> list[str]:
    return [cache.instructions[episode.instruction] for episode in cache.episodes]


def test_about_half_of_the_chosen_episodes_are_told_in_other_words(cache: FrameCache, tiny_config: Config) -> None:
    before = told(cache)
    others = {text: [f"{text}, please", f"now {text}"] for text in set(before)}
    chosen = list(range(1, len(cache.episodes)))
    changed = reword(cache, others, chosen)
    after = told(cache)
    assert 0 < changed < len(chosen)
    assert changed == sum(a != b for a, b in zip(before, after))
    assert after[0] == before[0]
    assert all(b == a or b in others[a] for a, b in zip(before, after))
    again = open_frame_cache(tiny_config, progress=False)
    reword(again, others, chosen)
    assert told(again) == after


def test_training_hears_the_wordings_and_validation_the_instructions(tiny_config: Config, tmp_path: Path) -> None:
    def episodes(config: Config) -> tuple[FrameCache, list[int]]:
        cache = prepare(config, "1").main.cache
        return cache, split_episodes(cache, config.data.train_split, config.seed, None)[1]

    own = set(episodes(tiny_config)[0].instructions)
    file = written(tmp_path, {text: [f"{text}, please"] for text in own})
    vectors = tmp_path / "language.npz"
    sentences = {*own, *(f"{text}, please" for text in own)}
    np.savez(vectors, **{text: np.full(tiny_config.model.language_dim, 0.1, np.float32) for text in sentences})
    update = {
        "data": tiny_config.data.model_copy(update={"wordings": str(file)}),
        "language": tiny_config.language.model_copy(update={"encoder": str(vectors)}),
    }
    cache, held_out = episodes(tiny_config.model_copy(update=update))
    texts = told(cache)
    assert any(text.endswith("please") for text in texts)
    assert held_out
    assert not any(texts[index].endswith("please") for index in held_out)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ([], "expected instructions with lists of wordings"),
        ({"open it": "pull it"}, "'open it': expected a list of sentences, got 'pull it'"),
        ({"open it": [3]}, r"'open it': expected a list of sentences, got \[3\]"),
        ({"open it": ["do it"], "close it": ["do  it"]}, "'do it' stands for both 'open it' and 'close it'"),
        ({"open it": ["close it"], "close it": []}, "'close it' stands for both 'close it' and 'open it'"),
    ],
)
def test_a_wrong_file_is_told_by_name(tmp_path: Path, tree: object, words: str) -> None:
    file = written(tmp_path, tree)
    with pytest.raises(UserError, match=words) as error:
        read_wordings(file)
    assert str(file) in str(error.value)


def test_a_wording_is_no_other_instruction_of_the_data(cache: FrameCache) -> None:
    first, second = cache.instructions[:2]
    with pytest.raises(UserError, match="is another instruction of the data"):
        reword(cache, {first: [second]}, [0])


def test_a_file_for_other_data_is_told(cache: FrameCache) -> None:
    with pytest.raises(UserError, match=rf"has none for the data in .*such as '{cache.instructions[0]}'"):
        reword(cache, {"fold the towel": ["fold it"]}, range(len(cache.episodes)))


def test_the_shipped_wordings_leave_out_what_libero_pro_tests_with() -> None:
    tasks = pytest.importorskip("statevla.worlds.libero.tasks")
    wordings = read_wordings(SHIPPED)
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    own = {task.instruction for suite in suites for task in tasks.suite_tasks(suite)}
    assert own <= wordings.keys()
    tested = {
        task.instruction
        for suite in suites
        for part in ("lan", "object", "swap", "task")
        for task in tasks.suite_tasks(f"{suite}_{part}")
    }
    assert len(tested) > 60
    assert not tested & {other for others in wordings.values() for other in others}
