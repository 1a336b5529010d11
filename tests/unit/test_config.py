"""The configuration: what it accepts, and that every mistake is one plain line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orpo_ray.config import (
    EvaluationConfig,
    OrpoConfig,
    ScoreConfig,
    SftConfig,
    TrainConfig,
    load_as,
    load_benchmark,
    load_config,
    load_pipeline,
    load_sweep,
    parse_config,
)
from orpo_ray.config.identity import identity
from orpo_ray.config.paper import load_paper
from orpo_ray.errors import UserError

MINIMAL = "name: run\nmodel: {name_or_path: toy}\ndata: {train: toy}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def mistake(path: Path, *overrides: str) -> str:
    """The message that the user sees, without the name of the file."""
    with pytest.raises(UserError) as error:
        load_config(path, list(overrides))
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_defaults(file: Path) -> None:
    config = load_config(file)
    assert config.objective == OrpoConfig()
    assert config.objective.lambda_ == 0.1
    assert (config.optim.lr, config.optim.schedule, config.optim.warmup_steps) == (8e-6, "cosine", 100)
    assert (config.train.global_batch_size, config.train.zero_stage) == (64, 2)
    assert (config.train.keep, config.train.checkpoint_every_minutes) == ("best", 10)
    assert config.run_dir == Path("runs/run").resolve()
    assert config.cache_dir == Path("runs/.cache").resolve()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key optim.lrr; did you mean optim.lr?"),
        ("objective.lamda=1", "unknown key objective.lamda; did you mean objective.lambda?"),
        ("train.batch_size=8", "unknown key train.batch_size; did you mean train.global_batch_size?"),
        ("tran.epochs=3", "unknown key tran; did you mean train?"),
        ("max_steps=3", "unknown key max_steps; did you mean train.max_steps?"),  # right key, wrong section
        ("scaling.usegpu=3", "unknown key scaling.usegpu; did you mean scaling.use_gpu?"),
        ("optim.learning_rate=1", "unknown key optim.learning_rate; optim has lr, schedule, warmup_steps, "
         "weight_decay, betas, eps, max_grad_norm"),
        ("data.train=[{sorce: a, source: a, name: a}]",
         "unknown key data.train.0.sorce; did you mean data.train.0.source?"),
        ("data.eval=[{source: a, name: a}, {source: a, name: b, colums: {}}]",
         "unknown key data.eval.1.colums; did you mean data.eval.1.columns?"),
        ("data.train=[{source: a, name: a, xyz: 1}]", "unknown key data.train.0.xyz; data.train.0 has columns, roles, "
         "system, prefer, unread, source, name, split, weight, limit, format"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest(file: Path, override: str, message: str) -> None:
    assert mistake(file, override) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=ten",
         "train.epochs: should be a valid integer, unable to parse string as an integer (got 'ten')"),
        ("train.epochs=1.5",
         "train.epochs: should be a valid integer, got a number with a fractional part (got 1.5)"),
        ("train.epochs=0", "train.epochs: should be greater than or equal to 1 (got 0)"),
        ("train.epochs=yes",
         "train.epochs: expected a number (got True, which YAML also reads from yes, no, on and off)"),
        ("optim.lr=0", "optim.lr: should be greater than 0 (got 0)"),
        ("optim.lr=.nan", "optim.lr: should be a finite number (got nan)"),
        ("optim.lr=.inf", "optim.lr: should be a finite number (got inf)"),
        ("optim.lr=-1e-5", "optim.lr: should be greater than 0 (got '-1e-5')"),
        ("optim.lr=on",
         "optim.lr: expected a number (got True, which YAML also reads from yes, no, on and off)"),
        ("optim.betas=[0.9, 1]", "optim.betas.1: should be less than 1 (got 1)"),
        ("optim.schedule=cosin",
         "optim.schedule: should be 'cosine', 'linear', 'constant' or 'inverse_sqrt' (got 'cosin')"),
        ("objective.lambda=-1", "objective.lambda: should be greater than or equal to 0 (got -1)"),
        ("objective.lambda=.nan", "objective.lambda: should be a finite number (got nan)"),
        (
            "objective.name=reinforce",
            "objective.name: should be one of 'orpo', 'probability_ratio', 'sft', 'dpo', 'ipo', 'kto_pair', 'kto', "
            "'simpo', 'cpo', 'unlikelihood', 'reward', 'ppo', 'rloo', 'grpo', 'online' (got 'reinforce')",
        ),
        ("objective=orpo", "objective: should be a mapping of keys (got 'orpo')"),
        ("train.zero_stage=4", "train.zero_stage: should be 0, 1, 2 or 3 (got 4)"),
        ("scaling.use_gpu=maybe", "scaling.use_gpu: should be True, False or 'auto' (got 'maybe')"),
        ("name=../../etc",
         "name: should be letters, digits, dots, dashes and underscores, a letter or a digit first (got '../../etc')"),
        ("data.roles=[a]", "data.roles: should be a mapping of keys (got ['a'])"),
        ("data.unread=input", "data.unread: should be a list (got 'input')"),
        ("model=toy", "model: should be a mapping of keys (got 'toy')"),
        ("model.name_or_path=null", "model.name_or_path: should be a text (got None)"),
        ("data={eval: toy-test}", "data.train is missing"),
        ("data.max_length=100",
         "data.max_prompt_length (768) must be below data.max_length (100), or no response token fits"),
        ("seed=0x" + "f" * 5000, "seed: should be less than 4294967296 (got a number too long to show)"),
        ("optim.lr=0x" + "f" * 5000, "optim.lr: should be a valid number (got a number too long to show)"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused(file: Path, override: str, message: str) -> None:
    assert mistake(file, override) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{gradient_clipping: 5}", "gradient_clipping follows from optim.max_grad_norm; set that"),
        ("{bf16: {check_grad_overflow: false}}", "bf16 follows from model.dtype; set that"),
        ("{fp16: {enabled: true}}", "fp16 follows from model.dtype; set that"),
        ("{optimizer: {type: Lamb}}", "optimizer follows from optim; set that"),
        ("{scheduler: {type: OneCycle}}", "scheduler follows from optim.schedule; set that"),
        ("{train_batch_size: 8}", "train_batch_size follows from train.global_batch_size; set that"),
        ("{train_micro_batch_size_per_gpu: 2}",
         "train_micro_batch_size_per_gpu follows from train.tokens_per_microbatch; set that"),
        ("{gradient_accumulation_steps: 2}",
         "gradient_accumulation_steps follows from train.tokens_per_microbatch; set that"),
        ("{gradient_allreduce_op: sum}",
         "gradient_allreduce_op follows from train.global_batch_size, over which losses are means; set that"),
        ("{zero_optimization: {stage: 1}}", "zero_optimization.stage follows from train.zero_stage; set that"),
        ("{zero_optimization: 3}", "zero_optimization.stage follows from train.zero_stage; set that"),
        ("{zero_optimization: {offload_optimizer: {device: cpu}}}",
         "zero_optimization.offload_optimizer.device follows from train.offload_optimizer; set that"),
    ],
)  # fmt: skip
def test_deepspeed_is_not_told_what_the_file_says(file: Path, settings: str, message: str) -> None:
    assert mistake(file, f"train.deepspeed={settings}") == f"train.deepspeed: {message}"


def test_deepspeed_is_told_the_rest(file: Path) -> None:
    own = "{communication_data_type: bf16, zero_optimization: {offload_optimizer: {pin_memory: false}}}"
    assert load_config(file, [f"train.deepspeed={own}"]).train.deepspeed["communication_data_type"] == "bf16"


def test_all_mistakes_are_told_in_the_order_in_which_they_were_typed(file: Path) -> None:
    assert mistake(file, "scaling.num_workers=zero", "seed=-1", "tran.x=1", "data={trian: toy}") == (
        "unknown key data.trian; did you mean data.train?; "  # and not that data.train is missing
        "scaling.num_workers: should be a valid integer, unable to parse string as an integer, or a list (got 'zero'); "
        "seed: should be greater than or equal to 0 (got -1); unknown key tran; did you mean train?"
    )
    many = [f"train.{key}=0" for key in ("epochs", "max_steps", "global_batch_size", "tokens_per_microbatch")]
    assert mistake(file, "optim.lr=0", *many, "seed=-1", "data=3").endswith("(got 0) (and 2 more problems)")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scaling.num_workers=[1, x]",
         "scaling.num_workers.1: should be a valid integer, unable to parse string as an integer (got 'x')"),
        ("scaling.cpus_per_worker=x",
         "scaling.cpus_per_worker: should be a valid number, unable to parse string as a number, or 'auto' (got 'x')"),
    ],
)  # fmt: skip
def test_what_may_be_of_several_kinds_is_told_as_one(file: Path, override: str, message: str) -> None:
    assert mistake(file, override) == message


def test_a_configuration_of_something_else_is_told_as_that() -> None:
    configs = Path(__file__).resolve().parents[2] / "configs"
    files = {
        "toy-orpo": "a training run: orpo-ray train", "toy-winrate": "an evaluation: orpo-ray evaluate",
        "score-toy": "scores: orpo-ray score", "toy-sweep": "a sweep: orpo-ray sweep",
        "toy-pipeline": "a pipeline: orpo-ray pipeline", "paper/hh": "the paper remade: orpo-ray paper",
        "bench/hh-opt-52m": "a benchmark: orpo-ray bench",
    }  # fmt: skip
    loaders: dict[str, Callable[[Path], object]] = {
        "train": load_config, "evaluate": partial(load_as, EvaluationConfig), "score": partial(load_as, ScoreConfig),
        "sweep": load_sweep, "pipeline": load_pipeline, "paper": load_paper, "bench": load_benchmark,
    }  # fmt: skip
    for name, words in files.items():
        path = configs / f"{name}.yaml"
        for command, load in loaders.items():
            if not words.endswith(f" {command}"):
                with pytest.raises(UserError) as error:
                    load(path)
                assert str(error.value) == f"{path}: is the configuration of {words}"


def test_comparisons_suit_the_objective(file: Path) -> None:
    rankings = "objective={name: reward, loss: plackett_luce}"
    assert mistake(file, rankings, "data.comparisons=best_against_worst") == (
        "data.comparisons: best_against_worst leaves two answers, plackett_luce reads rankings"
    )
    assert mistake(file, "objective={name: kto}", "data.comparisons=best_against_each") == (
        "data.comparisons (best_against_each): kto judges each answer by itself"
    )
    plain = load_config(file, [])  # what came after there were runs does not part those from it
    assert {"data.comparisons", "objective.loss"}.isdisjoint(identity(plain.for_a_file()))
    assert load_config(file, ["data.comparisons=best_against_each"]).digest() != plain.digest()


def test_columns_of_files_are_nothing_to_a_built_in_source_beside_them(file: Path) -> None:
    shape = ["data.columns={prompt: question}", "data.format=plain", "data.unread=[input]", "data.system=Be kind."]
    data = load_config(file, [*shape, "data.train=pairs.jsonl", "data.eval=toy-test"]).data
    assert data.train_sources[0].columns == {"prompt": "question"}
    [held_out] = data.eval_sources
    assert (held_out.columns, held_out.format, held_out.unread, held_out.system) == (None, "auto", None, "Be kind.")
    sources = "data.train=[{source: toy, name: a}, {source: pairs.jsonl, name: b}]"
    assert [source.columns for source in load_config(file, [*shape, sources]).data.train_sources] == [
        None, {"prompt": "question"},
    ]  # fmt: skip
    own = load_config(file, ["data.columns={prompt: question}"]).data.train_sources[0]
    assert own.columns == {"prompt": "question"}, "which is for nobody else, and the data say that it has no such"


ROLLOUTS = ["objective={name: ppo}", "rollouts={max_tokens: 32, rewards: {truth: toy}}"]


def test_a_path_that_stands_for_a_section_takes_keys_below_it(file: Path) -> None:
    def rewards(*overrides: str) -> dict[str, tuple[str, float]]:
        rollouts = load_config(file, [*ROLLOUTS, "data.max_length=128", *overrides]).rollouts
        assert rollouts is not None
        return {label: (one.path, one.weight) for label, one in rollouts.rewards.items()}

    assert rewards("rollouts.rewards.truth.weight=0.5") == {"truth": ("toy", 0.5)}
    given = ["rollouts.rewards.rule=rules.py:short", "rollouts.rewards.rule.weight=-1"]
    assert rewards(*given) == {"truth": ("toy", 1), "rule": ("rules.py:short", -1)}
    told = "unknown key rollouts.rewards.truth.wieght; did you mean rollouts.rewards.truth.weight?"
    assert mistake(file, *ROLLOUTS, "rollouts.rewards.truth.wieght=1") == told


def test_what_is_left_of_a_prompt_is_nothing_to_rollouts_which_cut_none(file: Path) -> None:
    runs = [load_config(file, [*ROLLOUTS, "data.max_length=128", f"data.max_prompt_length={n}"]) for n in (64, 768)]
    assert runs[0].digest() == runs[1].digest(), "so either goes on with the other"
    pairs = [load_config(file, [f"data.max_prompt_length={n}"]) for n in (64, 512)]
    assert pairs[0].digest() != pairs[1].digest()


def test_a_key_of_another_objective_is_named(file: Path) -> None:
    file.write_text(MINIMAL + "objective: {name: orpo, lambda: 0.5}\n")
    assert mistake(file, "objective.name=sft") == "objective.lambda is no key of the objective sft"
    config = load_config(file, ["objective={name: sft, nll_tokens: chosen}"])
    assert config.objective == SftConfig(nll_tokens="chosen")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nmodel: {name_or_path: toy\ndata: 1\n", ", line 3: not valid YAML: expected ',' or '}'"),
        ("name: x\n\tmodel: 1\n",
         ", line 2: not valid YAML: found character '\\t' that cannot start any token"),
        ("name: x\nseed: 1\nname: y\n", ", line 3: not valid YAML: the key name occurs twice"),
        ("name: x\ndata:\n  train: a\n  train: b\n", ", line 4: not valid YAML: the key train occurs twice"),
        ("? [a]\n: 1\n", ", line 1: not valid YAML: found unhashable key"),
        ("name: !!python/object/apply:os.system [ls]\n",
         ", line 1: not valid YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", ", line 2: not valid YAML: but found another document"),
        ("name: 2024-13-45\n", ": not valid YAML: month must be in 1..12"),
        ("name: \x00\n", ": not valid YAML: unacceptable character #x0000"),
        ("a: " + "[" * 5000, ": not valid YAML: maximum recursion depth exceeded"),
        ("- a\n- b\n", ": expected a mapping of keys at the top, found list"),
        ("", ": expected a mapping of keys at the top, found NoneType"),
        ("just words", ": expected a mapping of keys at the top, found str"),
        (MINIMAL + "1: 2\n", ": 1: Keys should be strings (got 1)"),
    ],
)  # fmt: skip
def test_broken_yaml_is_told_with_its_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(file)
    assert str(error.value).startswith(f"{file}{message}")
    assert "\n" not in str(error.value)


def test_merge_keys_still_work(file: Path) -> None:
    file.write_text(MINIMAL + "train: {<<: {epochs: 3, zero_stage: 0}, epochs: 4}\n")
    train = load_config(file).train
    assert (train.epochs, train.zero_stage) == (4, 0)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy-orpo.yaml").write_text(MINIMAL)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert mistake(Path("toy-orpo.yml")) == "no such file; did you mean configs/toy-orpo.yaml?"
    assert mistake(Path("configs/toy-opro.yaml")) == "no such file; did you mean configs/toy-orpo.yaml?"
    assert mistake(Path("nothing/like/it")) == "no such file"
    assert mistake(Path("configs")) == "is a folder, expected a YAML file"
    (tmp_path / "pairs.jsonl").write_text("{}\n{}\n")
    assert mistake(Path("pairs.jsonl")).startswith("is data, expected a YAML file; behind one, data.train=pairs")
    assert mistake(Path("latin.yaml")) == "not UTF-8 text (invalid continuation byte at byte 9)"


def test_overrides(file: Path) -> None:
    config = load_config(
        file,
        [
            "optim.lr=1e-5",  # YAML 1.1 reads this as text
            "optim.betas=[0.8, 0.95]",
            "data.eval=toy-test",
            "data.eval=null",
            "train={epochs: 3, zero_stage: 3}",
            "train.max_steps=7",
            "model.tokenizer=a=b",
            "data.chat_template='{{ messages }}'",
            "scaling.use_gpu=false",
        ],
    )
    assert config.optim.lr == 1e-5
    assert config.optim.betas == (0.8, 0.95)
    assert config.data.eval is None
    assert (config.train.epochs, config.train.zero_stage, config.train.max_steps) == (3, 3, 7)
    assert config.model.tokenizer == "a=b"
    assert config.data.chat_template == "{{ messages }}"
    assert config.scaling.use_gpu is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "override 'optim.lr': expected dotted.key=value, such as optim.lr=1e-5"),
        ("=3", "override '=3': expected dotted.key=value, such as optim.lr=1e-5"),
        ("optim..lr=3", "override 'optim..lr=3': expected dotted.key=value, such as optim.lr=1e-5"),
        ("name.x=3", "override 'name.x=3': name is a single value, it has no keys below it"),
        (
            "optim.betas.x=3",
            "override 'optim.betas.x=3': optim.betas is a list of 2, whose parts are called optim.betas.0 and so on",
        ),
        (
            "optim.betas.2=3",
            "override 'optim.betas.2=3': optim.betas is a list of 2, whose parts are called optim.betas.0 and so on",
        ),
        (
            "name={a",
            "override 'name={a', line 1: not valid YAML: expected ',' or '}', but got '<stream end>'",
        ),
    ],
)
def test_a_malformed_override_is_refused(file: Path, override: str, message: str) -> None:
    file.write_text(file.read_text() + "optim: {betas: [0.8, 0.95]}\n")
    assert mistake(file, override) == message


def test_overrides_of_what_is_in_a_list(file: Path) -> None:
    sources = "data.train=[{source: a, name: a, weight: 1}, {source: b, name: b, weight: 1}]"
    config = load_config(file, [sources, "data.train.1.weight=5", "optim.betas=[0.8, 0.95]", "optim.betas.0=0.7"])
    assert [source.weight for source in config.data.train_sources] == [1, 5]
    assert config.optim.betas == (0.7, 0.95)


def test_packing_may_be_off_as_yaml_writes_it(file: Path) -> None:
    config = load_config(file, ["model.packing=off"])
    assert config.model.packing == "off"
    assert yaml.safe_load(config.to_yaml())["model"]["packing"] == "off"


def test_overrides_leave_the_mapping_alone() -> None:
    mapping = yaml.safe_load(MINIMAL)
    parse_config(mapping, ["data.train=other", "optim.lr=1"], origin="test")
    assert mapping == yaml.safe_load(MINIMAL)


# Text that YAML can hold: everything printable, in YAML's sense.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
places = texts.filter(lambda text: not text.startswith("~"))  # which is somebody's home, or nobody's
configs = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
        "seed": st.integers(0, 2**32 - 1),
        "model": st.fixed_dictionaries({"name_or_path": places, "tokenizer": st.none() | places}),
        "data": st.fixed_dictionaries({"train": places, "chat_template": st.none() | texts}),
        "objective": st.fixed_dictionaries({"name": st.just("orpo"), "lambda": st.floats(0, 1e6)})
        | st.fixed_dictionaries({"name": st.just("sft")}),
        "optim": st.fixed_dictionaries({
            "lr": st.floats(0, 1e300, exclude_min=True),
            "warmup_steps": st.floats(0, 1e9),
            "betas": st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
            "max_grad_norm": st.none() | st.floats(0.1, 10),
        }),
        "train": st.fixed_dictionaries({"epochs": st.integers(1, 10**12)}),
        "scaling": st.fixed_dictionaries({"use_gpu": st.sampled_from([True, False, "auto"])}),
    }
)  # fmt: skip


@given(configs)
@settings(max_examples=100, deadline=None)
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, mapping: dict) -> None:
    config = TrainConfig.model_validate(mapping)
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


def test_the_written_form_holds_every_default_under_its_own_name(file: Path) -> None:
    written = yaml.safe_load(load_config(file).to_yaml())
    assert list(written) == list(TrainConfig.model_fields)
    assert written["objective"] == {
        "name": "orpo", "lambda": 0.1, "nll_tokens": "prompt_and_chosen", "gradient_metrics": False,
    }  # fmt: skip


# YAML-shaped trees: real and wrong keys, and values of every kind that YAML can make.
odd_values = ["orpo", "sft", "toy", "auto", "1e-5", 10**400, -(10**400), float("nan"), float("inf")]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.dates(), st.sampled_from(odd_values),
)  # fmt: skip
real_keys = [*TrainConfig.model_fields, "lr", "lambda", "lambda_", "name_or_path", "betas", "orpo", "use_gpu"]
keys = st.sampled_from(real_keys) | st.integers() | st.text(max_size=5) | st.booleans() | st.none()
trees = st.recursive(
    scalars,
    lambda node: st.dictionaries(keys, node, max_size=6) | st.lists(node, max_size=3),
    max_leaves=25,
)
noise = st.text(st.sampled_from("nameodl:tri {}[],&*!|>-?#%@'\"\\\n\t~.0189_="), max_size=60)
tags = st.sampled_from(["bool", "int", "float", "timestamp", "binary", "set", "omap", "pairs", "null"])
tagged = st.builds("seed: !!{} {}".format, tags, st.text("x10:-[]{} ", max_size=6))
additions = st.dictionaries(keys, trees, max_size=9).map(yaml.safe_dump) | noise | tagged


@given(
    text=trees.map(yaml.safe_dump) | noise | additions.map(MINIMAL.__add__),
    overrides=st.lists(st.text(st.sampled_from("modeltrainnp.=:{}[]!&*,1e-"), max_size=20), max_size=1),
)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_a_configuration_or_one_plain_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, overrides: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        config = load_config(path, overrides)
    except UserError as error:
        message = str(error)
    else:
        message = "fine"
        path.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(path) == config
    assert "\n" not in message
    assert len(message) < 1000


class TestWorkers:
    @pytest.mark.parametrize(("value", "fewest", "most"), [("3", 3, 3), ("[2, 8]", 2, 8), ("[4, 4]", 4, 4)])
    def test_a_number_or_a_range(self, value: str, fewest: int, most: int) -> None:
        scaling = parse_config(yaml.safe_load(MINIMAL), [f"scaling.num_workers={value}"], "test").scaling
        assert (scaling.fewest_workers, scaling.most_workers) == (fewest, most)

    @pytest.mark.parametrize("value", ["[8, 2]", "[0, 2]", "[1]", "true", "0"])
    def test_no_range(self, value: str) -> None:
        with pytest.raises(UserError, match=r"scaling(\.num_workers)?"):
            parse_config(yaml.safe_load(MINIMAL), [f"scaling.num_workers={value}"], "test")
