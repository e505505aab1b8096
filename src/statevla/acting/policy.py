"""A checkpoint as a robot's policy: observation in, actions out.

The same object serves offline evaluation, simulation, a server and a robot. It needs no simulator.

How chunks are executed: a query gives `H` future actions. Open loop (the default) executes all of them before looking
again; `execute_steps=k` looks again after `k`. With `temporal_ensembling=m`, every step blends what all chunks that
cover it say, with weights `exp(-m·i)`, `i` = 0 for the oldest (ACT, Zhao et al. 2023, arXiv 2304.13705, section IV).

Determinism: the noise of a query is a function of (seed, episode, number of the query) and of nothing else, so it does
not depend on which other environments share the forward. Floating-point sums do: results of different batch sizes
agree to rounding, not bit for bit, and a simulation amplifies the difference. Query one by one where that matters.

Surprise: every look is compared with what the world model expected of the actions executed since the last one, see
`statevla.acting.alarm`. `statevla calibrate` gives a checkpoint the thresholds that an alarm needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from statevla.acting.alarm import Calibration, Sighting, expect, novelty_of, surprise_of
from statevla.acting.options import ActingOptions
from statevla.acting.session import PolicySession
from statevla.checkpoints.checkpoint import check_language, load_checkpoint, weights_hash
from statevla.checkpoints.share import copy_checkpoint, push_checkpoint
from statevla.config import expand_path
from statevla.errors import UserError
from statevla.machine.device import autocast, resolve_device, resolve_precision
from statevla.model.language import LanguageEncoder, build_language_encoder
from statevla.model.statevla_model import StateVLA
from statevla.transforms import Transform
from statevla.types import ActionChunk, ModelInput, Observation

MAX_STANDARD_DEVIATIONS = 1e6
"""A robot state further off than this, and not the weights, is to blame for actions that are not finite."""


class StateVLAPolicy:
    """A trained model with its statistics and its language encoder, ready to act.

    Args:
        model: the model; it is put into evaluation mode on `device`.
        transform: what the model was trained with.
        language: embeds instructions; it remembers them.
        options: how to act.
        name: of the checkpoint, for messages and results.
        frame_size: side of the frames that its data stored (pixels); the model's own by default.
        has_world_model: whether the temporal predictor was trained, so that there is a surprise.
        calibration: thresholds of the alarms.

    Raises:
        UserError: an option is out of range, or the language encoder does not fit the model.
    """

    def __init__(
        self,
        model: StateVLA,
        transform: Transform,
        language: LanguageEncoder,
        options: ActingOptions | None = None,
        *,
        name: str = "policy",
        frame_size: int | None = None,
        has_world_model: bool = True,
        calibration: Calibration | None = None,
    ) -> None:
        settings = model.config.model
        options = options or ActingOptions()
        self.horizon, self.name, self.seed = settings.action_seq_len, name, options.seed
        self.execute_steps = options.steps_of(self.horizon, name)
        self.device = resolve_device(options.device)
        trains_exactly = options.precision == "auto" and model.config.training.precision == "fp32"
        self.precision = "fp32" if trains_exactly else resolve_precision(options.precision, self.device)
        if language.dim != settings.language_dim:
            raise UserError(
                f"policy '{name}': its model reads instructions of {settings.language_dim} numbers, the language "
                f"encoder '{language.name}' gives {language.dim}; use the encoder it was trained with"
            )
        self.model = model.to(self.device).eval()
        self._autocast_precision = self.precision
        if self.device.type == "cpu":
            self.model.prepare_for_inference(self.precision)
            if self.model.is_prepared:  # its programs carry their precision
                self._autocast_precision = "fp32"
        self.config = model.config
        self.transform, self.robot = transform, transform.robot
        self.language = language
        self.frame_size = frame_size or settings.image_size
        self.has_world_model, self.calibration = has_world_model, calibration
        self._memory = None if calibration is None else calibration.memory.to(self.device)
        self.num_sampling_steps = options.num_sampling_steps or settings.policy.num_sampling_steps
        temperature, default = options.sampling_temperature, settings.policy.sampling_temperature
        self.sampling_temperature = default if temperature is None else temperature
        self.temporal_ensembling = options.temporal_ensembling
        self._checkpoint: Path | None = None
        # Never ask a robot for more than any demonstration did.
        bounds = transform.statistics.actions
        self._low, self._high = bounds.min.astype(np.float32), bounds.max.astype(np.float32)
        # Binary commands are exact already; training may have seen one of the two only.
        self._low[self.robot.is_binary], self._high[self.robot.is_binary] = -np.inf, np.inf
        self._session = self.new_session()

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> StateVLAPolicy:
        """Load a checkpoint.

        Args:
            path: a folder, an alias such as `checkpoints/phase2_flow_matching/checkpoint_best.pt`, the name of a policy
                that comes along, or `owner/repository` of the Hugging Face hub.
            options: as `ActingOptions` has them, `execute_steps=8` for one.

        Raises:
            UserError: no such checkpoint, a damaged one, one without a trained policy, or an option out of range.
        """
        loaded = load_checkpoint(path)
        phase = str(loaded.metrics.get("phase"))
        if phase == "1":
            raise UserError(
                f"checkpoint {path}: phase 1 trains no policy yet; train one on it with "
                f"train.py --phase 2 --phase1_checkpoint {path}"
            )
        settings = loaded.config.language
        beside = loaded.path / Path(settings.encoder).name
        if beside.is_file():  # embeddings that were shared with the checkpoint
            settings = settings.model_copy(update={"encoder": str(beside)})
        language = build_language_encoder(settings, loaded.config.model.language_dim)
        check_language(language.info, loaded.path)
        policy = cls(
            loaded.model,
            Transform(loaded.config.model, loaded.statistics, loaded.robot),
            language,
            ActingOptions(**options),
            name=str(path),
            frame_size=loaded.data.frame_size,
            has_world_model=phase != "bc",
            calibration=Calibration.load(loaded.path, weights_hash(loaded.path), loaded.config.model.state_dim),
        )
        policy._checkpoint = loaded.path
        return policy

    def save_pretrained(self, folder: str | Path) -> Path:
        """Copy the checkpoint, without its training state and with a model card, into a new folder; returns it.

        Raises:
            UserError: the policy comes from no checkpoint, or the folder is not empty or cannot be written.
        """
        return copy_checkpoint(self._source(), expand_path(folder))

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the address.

        Raises:
            UserError: the policy comes from no checkpoint, no hub is reachable, or it refuses.
        """
        return push_checkpoint(self._source(), repo_id, private)

    def _source(self) -> Path:
        if self._checkpoint is None:
            raise UserError("policy: made from parts, there is no checkpoint to share; use from_pretrained")
        return self._checkpoint

    # One robot --------------------------------------------------------------------------------------------------------

    def reset(self, episode: int | None = None) -> None:
        """Begin an episode: forget queued actions; `episode` chooses the noise (the same one by default)."""
        self._session.reset(episode)

    def needs_observation(self) -> bool:
        """Whether `act` wants a fresh observation now."""
        return self._session.needs_observation()

    @property
    def surprise(self) -> float | None:
        """How far the last look was from what the world model expected; see `PolicySession`."""
        return self._session.surprise

    @property
    def novelty(self) -> float | None:
        """How far z of the last look is from the training frames; see `PolicySession`."""
        return self._session.novelty

    @property
    def alarm(self) -> bool | None:
        """Whether surprise has exceeded its threshold since the last `reset`; None until a look was judged."""
        return self._session.alarm

    def threshold(self, score: str, num_actions: int | None = None) -> float | None:
        """The threshold of `surprise` or `novelty` for looks `num_actions` apart (`execute_steps`); None: none."""
        if self.calibration is None:
            return None
        return self.calibration.thresholds[score].get(num_actions or self.execute_steps)

    def act(self, observation: Observation | None = None) -> np.ndarray:
        """The next action, float32 `[A]`; the observation is looked at only where `needs_observation()`.

        Raises:
            UserError: an observation is needed and missing, or does not fit the model.
        """
        return self.act_batch([(self._session, observation)])[0]

    @overload
    def act_chunk(self, observation: Observation, noise: Sequence[Tensor] | None = None) -> ActionChunk: ...
    @overload
    def act_chunk(
        self, observation: Sequence[Observation], noise: Sequence[Tensor] | None = None
    ) -> list[ActionChunk]: ...
    def act_chunk(
        self, observation: Observation | Sequence[Observation], noise: Sequence[Tensor] | None = None
    ) -> ActionChunk | list[ActionChunk]:
        """Ask for whole chunks, without queue or blending; each one takes the noise of the next query.

        `noise`, standard normal `[H, C]` for each, is taken instead of it.

        What is executed of them is not known here, so there is no surprise; `act` and sessions have one.

        Raises:
            UserError: an observation does not fit the model.
        """
        observations = list(observation) if isinstance(observation, Sequence) else [observation]
        session = self._session
        own = [self._noise(session.episode, session.num_queries + i) for i in range(len(observations))]
        sampled, _ = self._sample(observations, own if noise is None else noise)
        chunks = [ActionChunk(chunk) for chunk in sampled]
        for _ in chunks:
            session.note(None)
        return chunks[0] if isinstance(observation, Observation) else chunks

    # Several environments ---------------------------------------------------------------------------------------------

    def new_session(self, episode: int = 0) -> PolicySession:
        """A queue of its own for one more environment; `episode` chooses its noise."""
        return PolicySession(self, episode)

    def act_batch(self, requests: Sequence[tuple[PolicySession, Observation | None]]) -> list[np.ndarray]:
        """The next action of each session, float32 `[A]` each; those that need a look share one forward.

        Raises:
            UserError: an observation is needed and missing, or does not fit the model.
        """
        looking = [(session, observation) for session, observation in requests if session.needs_observation()]
        if any(observation is None for _, observation in looking):
            raise UserError("policy: an observation is needed at this step, got None; ask session.needs_observation()")
        self.query([(session, observation) for session, observation in looking if observation is not None])
        return [session.next_action() for session, _ in requests]

    def query(self, requests: Sequence[tuple[PolicySession, Observation]]) -> None:
        """One forward for all these observations; each session then has actions queued.

        Raises:
            UserError: an observation does not fit the model.
        """
        for (session, _), (chunk, sighting) in zip(requests, self.sample_chunks(requests)):
            session.accept(chunk, sighting)

    def sample_chunks(self, requests: Sequence[tuple[PolicySession, Observation]]) -> list[tuple[np.ndarray, Sighting]]:
        """Whole chunks, float32 `[H, A]` each, with the noise of each session's next query, and what the looks told;
        one forward for all.

        Nothing is queued or counted: that is what `PolicySession.accept` does.

        Raises:
            UserError: an observation does not fit the model.
        """
        if not requests:
            return []
        noise = [self._noise(session.episode, session.num_queries) for session, _ in requests]
        chunks, states = self._sample([observation for _, observation in requests], noise)
        sightings = [self._judge(session.before(), state) for (session, _), state in zip(requests, states)]
        return list(zip(chunks, sightings))

    # The model --------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, observations: Sequence[Observation]) -> Tensor:
        """z_t of raw observations, float32 `[B, Z]`.

        Raises:
            UserError: an observation does not fit the model.
        """
        batch = self._to_model_input(observations)
        with autocast(self.device, self._autocast_precision):
            return self.model.encode(batch).float()

    def warm_up(self, batch_size: int = 1) -> None:
        """Answer made-up observations, so that kernels are compiled and caches filled before a robot waits."""
        settings = self.config.model
        frame = np.zeros((settings.image_size, settings.image_size, 3), np.uint8)
        state = self.robot.named_state(self.transform.statistics.robot_state.mean, "statistics")
        blank = [Observation(dict.fromkeys(settings.cameras, frame), state, "")] * batch_size
        # Embeddings of zeros: a file of precomputed ones may hold no text that could be made up here.
        language = torch.zeros(batch_size, settings.language_dim)
        batch = self.transform.observation_to_model_input(blank, language).to(self.device)
        self._answer(batch, self.transform.raw_state(blank), [self._noise(0, i) for i in range(batch_size)])

    def _to_model_input(self, observations: Sequence[Observation]) -> ModelInput:
        if not observations:
            raise UserError("policy: expected at least one observation, got none")
        for each in observations:
            if not isinstance(each, Observation):
                raise UserError(
                    f"observation: expected a statevla.types.Observation, got {type(each).__name__}; make one of "
                    "images, robot_state and instruction"
                )
            if not each.instruction.strip():
                raise UserError("observation: the instruction is empty; say what to do, as in the training data")
        embeddings = self.language.encode([observation.instruction for observation in observations])
        return self.transform.observation_to_model_input(observations, embeddings).to(self.device)

    def _sample(self, observations: Sequence[Observation], noise: Sequence[Tensor]) -> tuple[np.ndarray, Tensor]:
        """Chunks in the robot's units, float32 `[B, H, A]`, and z, float32 `[B, Z]`."""
        return self._answer(self._to_model_input(observations), self.transform.raw_state(observations), noise)

    @torch.inference_mode()
    def _answer(self, batch: ModelInput, raw_state: Tensor, noise: Sequence[Tensor]) -> tuple[np.ndarray, Tensor]:
        """As `_sample`, of what the model takes; `raw_state` `[B, S]` is what relative actions start from."""
        start = torch.stack(list(noise)).to(self.device)
        with autocast(self.device, self._autocast_precision):
            state = self.model.encode_for_policy(batch)
            sampled = self.model.sample_actions(
                state, self.num_sampling_steps, noise=start, temperature=self.sampling_temperature
            )
        actions = self.transform.targets_to_chunks(sampled, raw_state.to(self.device))
        chunks = actions.cpu().numpy().astype(np.float32)
        if not np.isfinite(chunks).all():
            if not bool((batch.robot_state.abs() <= MAX_STANDARD_DEVIATIONS).all()):
                raise UserError(
                    "observation robot_state: expected numbers like those of the training data, got NaN or values "
                    f"further off than {MAX_STANDARD_DEVIATIONS:g} standard deviations; send what the robot measures"
                )
            raise UserError(f"policy '{self.name}': it answered NaN or infinite actions; its weights are damaged")
        return chunks.clip(self._low, self._high), state[:, : self.config.model.state_dim].float()

    @torch.inference_mode()
    def _judge(self, before: tuple[Tensor, np.ndarray] | None, state: Tensor) -> Sighting:
        """What the look at z `[Z]` told, given z and the executed actions before it."""
        surprise = novelty = None
        if before is not None and self.has_world_model:
            expected = expect(self.model, self.transform, before[0][None], before[1][None])
            surprise = float(surprise_of(expected, state[None]))
        if self._memory is not None:
            novelty = float(novelty_of(state[None], self._memory))
        return Sighting(state, surprise, novelty)

    def _noise(self, episode: int, query: int) -> Tensor:
        """Normal `[H, C]`, drawn on the CPU so that every device starts from the same."""
        (key,) = np.random.SeedSequence([self.seed, episode, query]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(key) & (2**63 - 1))
        return torch.randn(self.horizon, self.robot.num_continuous, generator=generator)


def load_policy(path: str | Path, **options: Any) -> StateVLAPolicy:
    """A checkpoint, ready to act: `StateVLAPolicy.from_pretrained`, which see."""
    return StateVLAPolicy.from_pretrained(path, **options)
