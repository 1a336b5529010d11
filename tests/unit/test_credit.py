"""From the scores of a round to columns of tokens and to the loss: what is configured is what counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_policy_gradients import loss_of, step

from orpo_ray.config.objectives import GrpoConfig, PpoConfig, RlooConfig
from orpo_ray.objectives.credit import token_columns


class TestFromConfigurationToLoss:
    """Whole rounds: scores, log-probs and values in, columns and loss out."""

    SAMPLES = 3
    BASE: dict[type, dict[str, Any]] = {PpoConfig: {}, RlooConfig: {}, GrpoConfig: {}}  # noqa: RUF012
    CHANGES = [  # noqa: RUF012
        *[(kind, {"clip": 0.05}) for kind in BASE],
        (PpoConfig, {"value_clip": 0.05}), (PpoConfig, {"value_clip": None}), (PpoConfig, {"value_weight": 0.7}),
        (PpoConfig, {"gamma": 0.9}), (PpoConfig, {"gae_lambda": 0.5}), (PpoConfig, {"whiten_advantages": False}),
        (GrpoConfig, {"scale_advantages": False}), (GrpoConfig, {"token_mean": "batch"}),
    ]  # fmt: skip

    def round(self, kind: type, coefficient: float = 0.1, cap: float | None = 2.0, **changes: Any) -> dict[str, Any]:
        config = kind(**changes)
        s = step(11, samples=self.SAMPLES * 10)
        tokens = len(s.scored)
        generator = np.random.default_rng(0)
        noise = generator.normal(size=(4, tokens))
        old = s.scored[:, 0].numpy() + 0.2 * noise[0]
        columns = token_columns(
            config, scores=generator.normal(size=len(s.lengths)), lengths=s.lengths.numpy(), samples=self.SAMPLES,
            old_logps=old, reference_logps=old + 0.5 * noise[1], engine_logps=old + 0.8 * noise[2],
            coefficient=coefficient, importance_cap=cap,
            values=s.scored[:, 1].numpy() + 0.5 * noise[3] if config.has_critic else None,
        )  # fmt: skip
        assert {*columns} == {*config.columns}
        assert all(column.shape == (tokens,) and column.dtype == np.float64 for column in columns.values())
        scored = s.scored.clone().requires_grad_()
        given = {name: torch.from_numpy(column) for name, column in columns.items()}
        loss, metrics = loss_of(config, s._replace(scored=scored, columns=given))
        loss.backward()
        return {"loss": float(loss.detach()), "gradient": scored.grad, "metrics": metrics, "columns": columns}

    @pytest.mark.parametrize(
        ("kind", "change"), CHANGES, ids=lambda value: value.__name__ if isinstance(value, type) else str(value)
    )
    def test_bug_coefficient_read_and_never_used(self, kind: type, change: dict[str, Any]) -> None:
        """slime#397."""
        plain, changed = self.round(kind), self.round(kind, **change)
        assert abs(plain["loss"] - changed["loss"]) > 1e-6
        assert (plain["gradient"] - changed["gradient"]).abs().max() > 1e-6

    @pytest.mark.parametrize("kind", BASE)
    @pytest.mark.parametrize("change", [{"coefficient": 0.3}, {"cap": None}, {"cap": 1.1}], ids=str)
    def test_bug_coefficient_of_a_round_read_and_never_used(self, kind: type, change: dict[str, Any]) -> None:
        plain, changed = self.round(kind), self.round(kind, **change)
        assert abs(plain["loss"] - changed["loss"]) > 1e-6

    def test_every_setting_of_the_losses_is_among_those_that_are_tried(self) -> None:
        """`kl_coefficient`, `kl_target` and `kl_horizon` make the round's coefficient; models are no coefficients."""
        elsewhere = {"name", "kl_coefficient", "kl_target", "kl_horizon", "reference", "critic"}
        for kind in self.BASE:
            tried = {key for other, change in self.CHANGES if other is kind for key in change}
            assert tried == {*kind.model_fields} - elsewhere

    def test_returns_are_of_advantages_that_are_not_whitened(self) -> None:
        plain, white = self.round(PpoConfig, whiten_advantages=False), self.round(PpoConfig, whiten_advantages=True)
        assert np.array_equal(plain["columns"]["returns"], white["columns"]["returns"])
        raw = plain["columns"]
        np.testing.assert_allclose(raw["returns"], raw["advantages"] + raw["old_values"], rtol=0, atol=1e-15)
        assert abs(white["columns"]["advantages"].mean()) < 1e-12

    @pytest.mark.parametrize("kind", [RlooConfig, GrpoConfig])
    def test_tokens_of_a_response_share_its_advantage(self, kind: type) -> None:
        columns, lengths = self.round(kind)["columns"], step(11, samples=self.SAMPLES * 10).lengths.tolist()
        of_responses = np.split(columns["advantages"], np.cumsum(lengths)[:-1])
        assert all(np.ptp(piece) == 0 for piece in of_responses)
        firsts = np.array([piece[0] for piece in of_responses]).reshape(-1, self.SAMPLES)
        np.testing.assert_allclose(firsts.sum(axis=1), 0, atol=1e-12)

    def test_rloo_weighs_responses_and_grpo_tokens(self) -> None:
        lengths = step(11, samples=self.SAMPLES * 10).lengths.tolist()
        whole, each = (self.round(kind)["columns"]["importance"] for kind in (RlooConfig, GrpoConfig))
        assert all(np.ptp(piece) == 0 for piece in np.split(whole, np.cumsum(lengths)[:-1]))
        assert np.unique(each).size > 60

    def test_equal_scores_of_the_reference_itself_move_nothing(self) -> None:
        """Without KL and with equal scores there is nothing to learn, and nothing that is not a number."""
        for kind in (RlooConfig, GrpoConfig):
            columns = token_columns(
                kind(), scores=[0.1] * 3, lengths=[2, 1, 3], samples=3, old_logps=[-0.1] * 6,
                reference_logps=[-0.1] * 6, engine_logps=[-0.1] * 6, coefficient=0.1, importance_cap=None,
            )  # fmt: skip
            assert not columns["advantages"].any()
