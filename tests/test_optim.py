"""The optimisers, against their definitions written out in float64."""

import inspect
import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import quiet_trainer
from zoo import optim
from zoo.datamodules import PennTreebank
from zoo.errors import UserError
from zoo.models import Zaremba
from zoo.optim import (
    NTASGD,
    ClippedUpdateAdam,
    DecayedSGD,
    DiscriminativeAdam,
    FlooredRMSprop,
    NonMonotonicSGD,
    OneCycle,
    OneCycleAdam,
    PlateauSGD,
    ReduceOnPlateauSGD,
    RMSProp,
    StepAdam,
)


def parameters(seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), torch.nn.Parameter(torch.randn(5).double())]


def descend(optimizer, steps=1):
    """Updates with gradients that depend on the weights; the iterates after each."""
    iterates = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                parameter.grad = torch.sin(parameter.detach() * (3 + index)) + 0.1
        optimizer.step()
        iterates.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
    return iterates


def observe(optimizer, values):
    """After which of the validations the averaging had begun."""
    begun = []
    for value in values:
        optimizer.observe(value)
        begun.append(optimizer.averaged is not None)
    return begun


class TestTheTrigger:
    @pytest.mark.parametrize(
        ("values", "first"),
        [
            ([9, 8, 7, 6, 5, 4, 3, 2, 1], None),
            # Worse than the best of all but the latest five: not before the seventh validation.
            ([1, 2, 2, 2, 2, 2, 2, 2], 7),
            ([1, 2, 2, 2, 2, 2], None),
            # A plateau below the early values does not trigger, nor does a value above its neighbours.
            ([9, 8, 7, 5, 5, 5, 5, 5, 5], None),
            ([9, 8, 7, 6, 5, 4, 6.5, 4, 4], None),
            # A jump above what came long ago does.
            ([9, 8, 7, 6, 5, 4, 3, 8.5, 4], 8),
            ([9, 8, 3, 6, 5, 4, 4, 4, 4], 9),
            # As good as the best is not worse.
            ([1, 2, 2, 2, 2, 2, 1, 1, 1], None),
        ],
    )
    def test_by_hand(self, values, first):
        optimizer = NTASGD(parameters(), lr=0.1, non_monotone=5)
        begun = observe(optimizer, values)
        assert begun.index(True) + 1 == first if first else not any(begun)

    def test_like_the_authors_code(self):
        """main.py, line by line: len(history) > n and value > min(history[:-n]), then append."""
        draw = torch.Generator().manual_seed(0)
        for _ in range(200):
            n = int(torch.randint(1, 7, (), generator=draw))
            values = (torch.rand(20, generator=draw) + torch.linspace(1, 0, 20)).tolist()
            history, expected, switched = [], [], False
            for value in values:
                if not switched:
                    switched = len(history) > n and value > min(history[:-n])
                    history.append(value)
                expected.append(switched)
            assert observe(NTASGD(parameters(), lr=0.1, non_monotone=n), values) == expected

    def test_in_fine_tuning_it_ends_the_training(self):
        optimizer = NTASGD(parameters(), lr=0.1, non_monotone=2, fine_tuning=True)
        assert [optimizer.observe(value) for value in (3, 2, 2.5, 1, 3)] == [False, False, False, False, True]

    def test_else_it_never_ends_it(self):
        optimizer = NTASGD(parameters(), lr=0.1, non_monotone=1)
        assert not any(optimizer.observe(value) for value in (1, 2, 3, 4, 5))


class TestTheAverages:
    def test_are_the_mean_of_the_iterates_since_the_trigger(self):
        weights = parameters()
        optimizer = NTASGD(weights, lr=0.1, weight_decay=0.01, non_monotone=1)
        descend(optimizer, 3)
        observe(optimizer, [1, 2, 3])
        iterates = descend(optimizer, 7)
        for index, weight in enumerate(weights):
            mean = torch.stack([iterate[index] for iterate in iterates[1:]]).mean(0)
            torch.testing.assert_close(optimizer.state[weight]["average"], mean, rtol=1e-12, atol=1e-12)
            assert torch.equal(weight, iterates[-1][index])

    def test_are_torchs_where_the_rate_is_constant(self):
        ours, theirs = parameters(), parameters()
        optimizer = NTASGD(ours, lr=0.1, weight_decay=0.01, fine_tuning=True)
        reference = torch.optim.ASGD(theirs, lr=0.1, lambd=0, t0=0, weight_decay=0.01)
        descend(optimizer, 6), descend(reference, 6)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(
                optimizer.state[mine]["average"], reference.state[other]["ax"], rtol=1e-6, atol=1e-6
            )

    def test_before_the_trigger_it_is_torchs_sgd(self):
        ours, theirs = parameters(), parameters()
        descend(NTASGD(ours, lr=0.1, weight_decay=0.01), 4)
        descend(torch.optim.SGD(theirs, lr=0.1, weight_decay=0.01), 4)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    def test_swap_shows_them_and_gives_the_weights_back(self):
        weights = parameters()
        optimizer = NTASGD(weights, lr=0.1, fine_tuning=True)
        descend(optimizer, 5)
        raw, averages = [w.detach().clone() for w in weights], [optimizer.state[w]["average"].clone() for w in weights]
        optimizer.swap()
        assert all(torch.equal(w, a) for w, a in zip(weights, averages, strict=True))
        with pytest.raises(RuntimeError, match="swap before"):
            optimizer.step()
        optimizer.swap()
        assert all(torch.equal(w, r) for w, r in zip(weights, raw, strict=True))

    def test_without_averages_swap_does_nothing(self):
        weights = parameters()
        before = [w.detach().clone() for w in weights]
        NTASGD(weights, lr=0.1).swap()
        assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def resumed(make, weights, optimizer):
    """Weights and optimiser as a new process has them after loading."""
    fresh = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    new = make(fresh)
    new.load_state_dict(deepcopy(optimizer.state_dict()))
    return fresh, new


@pytest.mark.parametrize("validations", [1, 4])
@pytest.mark.parametrize("swapped", [False, True])
def test_ntasgd_goes_on_from_its_state(validations, swapped):
    def make(weights):
        return NTASGD(weights, lr=0.1, weight_decay=0.01, non_monotone=2)

    weights = parameters()
    optimizer = make(weights)
    values = iter([1, 2, 3, 4, 5, 6, 7])
    for _ in range(validations):
        descend(optimizer, 3)
        optimizer.observe(next(values))
    descend(optimizer, 3)
    if swapped:
        optimizer.swap()
    fresh, new = resumed(make, weights, optimizer)
    if swapped:
        optimizer.swap()
    for value in values:
        descend(optimizer, 3), descend(new, 3)
        optimizer.observe(value), new.observe(value)
    assert new.history == optimizer.history
    assert new.averaged == optimizer.averaged
    for old, again in zip(weights, fresh, strict=True):
        assert torch.equal(old, again)
        assert torch.equal(optimizer.state[old]["average"], new.state[again]["average"])


class TestPlateau:
    def test_the_rate_falls_after_more_failures_than_its_patience(self):
        optimizer = PlateauSGD(parameters(), lr=9.0, decay=3, patience=1, least=0.5)
        rates, ends = [], []
        for value in (5, 4, 4, 4, 3, 6, 3, 3, 3, 3):
            ends.append(optimizer.observe(value))
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx([9, 9, 9, 3, 3, 3, 1, 1, 1 / 3, 1 / 3])
        assert ends == [False] * 8 + [True] * 2

    def test_without_patience_it_falls_whenever_validation_does_not_improve(self):
        optimizer = PlateauSGD(parameters(), lr=1.0, decay=1.5)
        for value in (5, 4, 4, 5):
            optimizer.observe(value)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 1.5**2)

    def test_the_best_weights_come_back(self):
        def make(weights):
            return PlateauSGD(weights, lr=0.1, decay=2, reload_best=True)

        weights = parameters()
        optimizer = make(weights)
        descend(optimizer, 2)
        best = [w.detach().clone() for w in weights]
        optimizer.observe(1.0)
        descend(optimizer, 2)
        fresh, new = resumed(make, weights, optimizer)
        for some, rule in ((weights, optimizer), (fresh, new)):
            rule.observe(2.0)
            assert all(torch.equal(w, b) for w, b in zip(some, best, strict=True))
            assert rule.param_groups[0]["lr"] == 0.05


def in_groups(weights):
    """One group for each, as parameters with rates of their own have."""
    return [{"params": [weight]} for weight in weights]


def updates(optimizer, weights, steps=12):
    """What each step adds to the weights, flat, for gradients that are drawn alike for every optimiser."""
    draw = torch.Generator().manual_seed(3)
    changes = []
    for _ in range(steps):
        before = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(weight.dtype)
        optimizer.step()
        changes.append(torch.cat([(w.detach() - b).flatten() for w, b in zip(weights, before, strict=True)]))
    return torch.stack(changes)


class TestClippedUpdateAdam:
    @pytest.mark.parametrize("groups", [list, in_groups])
    def test_shortens_what_is_longer_than_the_bound_and_leaves_the_rest(self, groups):
        bound, ours, theirs = 0.2, parameters(), parameters()
        plain = updates(torch.optim.Adam(theirs, lr=0.1), theirs)
        norms = plain.norm(dim=1, keepdim=True)
        assert 0 < (norms > bound).sum() < len(norms)
        clipped = updates(ClippedUpdateAdam(groups(ours), lr=0.1, max_update_norm=bound), ours)
        torch.testing.assert_close(clipped, plain * (bound / norms).clamp(max=1), rtol=1e-9, atol=1e-12)

    def test_is_plain_adam_to_the_bit_within_the_bound(self):
        ours, theirs = ([p.detach().float().requires_grad_() for p in parameters()] for _ in range(2))
        descend(ClippedUpdateAdam(ours, lr=0.1, max_update_norm=1.0, weight_decay=0.1), 6)
        descend(torch.optim.Adam(theirs, lr=0.1, weight_decay=0.1), 6)
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))

    def test_takes_a_closure_and_weights_without_a_gradient(self):
        used, unused = parameters()
        before = [used.detach().clone(), unused.detach().clone()]
        optimizer = ClippedUpdateAdam([used, unused], lr=0.1, max_update_norm=0.05)

        def closure():
            optimizer.zero_grad()
            loss = used.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure) == before[0].square().sum()
        assert (used - before[0]).norm().item() == pytest.approx(0.05)
        assert torch.equal(unused, before[1])

    def test_the_norm_of_many_equal_elements_is_the_bound(self):
        weight = torch.nn.Parameter(torch.zeros(1000, 1000))
        weight.grad = torch.ones_like(weight)
        ClippedUpdateAdam([weight], lr=2e-3, max_update_norm=1.0).step()
        assert weight.double().norm().item() == pytest.approx(1.0, rel=1e-5)

    def test_hooks_of_others_run_once(self):
        torch.optim.Adam(parameters())
        optimizer, runs = ClippedUpdateAdam(parameters(), lr=0.1, max_update_norm=0.1), []
        optimizer.register_step_post_hook(lambda *_: runs.append("after"))
        descend(optimizer, 2)
        assert runs == ["after", "after"]

    def test_bounds_the_updates_of_a_fit(self, data_tree):
        data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20)
        model = Zaremba(data.tokenizer.vocab_size, hidden_size=4)
        model.optimization = StepAdam(0.5, max_update_norm=0.25)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        quiet_trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=data)
        step = torch.cat([(new - old).flatten() for new, old in zip(model.parameters(), before, strict=True)])
        assert step.norm().item() == pytest.approx(0.25, rel=1e-5)


class TestFlooredRMSprop:
    def test_first_steps_by_hand(self):
        weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = FlooredRMSprop([weight], lr=0.1, decay=0.5)
        weight.grad = torch.tensor([2.0, -1e-7], dtype=torch.float64)
        optimizer.step()
        # v = (2, 5e-15); the second root is below the floor of 1e-5.
        first = [1 - 0.2 / math.sqrt(2), 1 + 1e-8 / 1e-5]
        assert weight.tolist() == pytest.approx(first, rel=1e-12)
        weight.grad = torch.tensor([-1.0, 3e-5], dtype=torch.float64)
        optimizer.step()
        # v = (1.5, 4.500025e-10); the second root is above it.
        second = [first[0] + 0.1 / math.sqrt(1.5), first[1] - 3e-6 / math.sqrt(4.500025e-10)]
        assert weight.tolist() == pytest.approx(second, rel=1e-12)

    @pytest.mark.parametrize("groups", [list, in_groups])
    def test_is_torchs_without_eps_above_the_floor(self, groups):
        ours, theirs = parameters(), parameters()
        expected = updates(torch.optim.RMSprop(theirs, lr=0.1, alpha=0.9, eps=0.0), theirs)
        changes = updates(FlooredRMSprop(groups(ours), lr=0.1, decay=0.9), ours)
        torch.testing.assert_close(changes, expected, rtol=1e-9, atol=1e-12)

    def test_without_a_gradient_nothing_moves(self):
        used, unused = parameters()
        before = unused.detach().clone()
        optimizer = FlooredRMSprop([used, unused], lr=0.1, decay=0.5)
        used.grad = torch.ones_like(used)
        optimizer.step()
        assert torch.equal(unused, before)
        assert unused not in optimizer.state


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: ClippedUpdateAdam(weights, lr=0.1, max_update_norm=0.2, weight_decay=0.01),
        lambda weights: FlooredRMSprop(weights, lr=0.1, decay=0.5),
    ],
    ids=["ClippedUpdateAdam", "FlooredRMSprop"],
)
def test_goes_on_from_its_state_to_the_bit(make):
    weights = parameters()
    optimizer = make(weights)
    descend(optimizer, 3)
    fresh, new = resumed(make, weights, optimizer)
    descend(optimizer, 4), descend(new, 4)
    assert all(torch.equal(old, again) for old, again in zip(weights, fresh, strict=True))


def found(optimizer):
    return {**optimizer.defaults, **vars(optimizer), **optimizer.param_groups[0]}


def settings(optimization):
    """What the optimiser of a model's parameters has, and what its schedule has."""
    model = torch.nn.Linear(2, 3)
    model.layer_groups = lambda: [[model.weight], [model.bias]]
    model.trainer = SimpleNamespace(max_epochs=5, datamodule=SimpleNamespace(train_dataloader=lambda: range(8)),
                                    limit_train_batches=0.5, accumulate_grad_batches=1)  # fmt: skip
    configured = optimization.configure(model)
    if isinstance(configured, torch.optim.Optimizer):
        return found(configured), {}
    if isinstance(configured, tuple):
        (optimizer,), (schedule,) = configured
    else:
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    return found(optimizer), vars(schedule)


@pytest.mark.parametrize(
    ("optimization", "of_the_optimizer", "of_the_schedule"),
    [
        (
            NonMonotonicSGD(7.0, 1e-3, 9, fine_tuning=True),
            {"lr": 7.0, "weight_decay": 1e-3, "non_monotone": 9, "fine_tuning": True},
            {},
        ),
        (
            ReduceOnPlateauSGD(7.0, 1e-3, 4.0, 6, 1e-4, reload_best=True),
            {"lr": 7.0, "weight_decay": 1e-3, "decay": 4.0, "patience": 6, "least": 1e-4, "reload_best": True},
            {},
        ),
        (DecayedSGD(7.0, 3, 2.0), {"initial_lr": 7.0, "weight_decay": 0}, {}),
        (StepAdam(0.7, [2], 1e-3, 5.0), {"lr": 0.7, "weight_decay": 1e-3}, {"milestones": {2: 1}, "gamma": 0.2}),
        (StepAdam(0.7, None, 1e-3, max_update_norm=0.3), {"lr": 0.7, "weight_decay": 1e-3, "max_update_norm": 0.3}, {}),
        (RMSProp(0.7, 0.9), {"lr": 0.7, "decay": 0.9}, {}),
        (
            OneCycleAdam(0.7, (2, 0, 2, 1), 1e-3, 0.95, 7.0, (0.6, 0.5)),
            {"weight_decay": 1e-3, "betas": (0.6, 0.95), "lr": 0.1},
            {"ends": [8, 8, 16, 20], "div": 7.0, "momentum": (0.6, 0.5)},  # half of 8 batches in each of 5 epochs
        ),
        (
            DiscriminativeAdam(0.7, 7.0, 0.0, 10.0, 1e-3, (0.6, 0.95)),
            {"weight_decay": 1e-3, "betas": (0.6, 0.95), "initial_lr": 0.1, "lr": 0.1},
            {},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_argument_arrives(optimization, of_the_optimizer, of_the_schedule):
    optimizer, schedule = settings(optimization)
    for there, expected in ((optimizer, of_the_optimizer), (schedule, of_the_schedule)):
        for name, value in expected.items():
            assert there[name] == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.mark.parametrize(
    ("optimization", "shares"),
    [
        (DecayedSGD(7.0, 3, 2.0), {0: 1, 3: 1, 4: 0.5, 5: 0.25}),
        (DiscriminativeAdam(0.7, cut=0.5, ratio=10.0), {0: 0.1, 10: 1, 15: 0.55, 20: 0.1}),  # of 20 updates
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_schedule_has_the_constants_that_were_given(optimization, shares):
    share, *_ = settings(optimization)[1]["lr_lambdas"]
    assert [share(at) for at in shares] == pytest.approx([*shares.values()])


def test_which_model_is_kept():
    """The last one after a schedule that goes through to its end, else that of the best validation."""
    kept = {kind.__name__: kind.keeps_best for kind in vars(optim).values() if is_optimization(kind)}
    assert kept == {
        "DecayedSGD": False,
        "OneCycleAdam": False,
        "NonMonotonicSGD": True,
        "ReduceOnPlateauSGD": True,
        "StepAdam": True,
        "RMSProp": True,
        "DiscriminativeAdam": True,
    }


def is_optimization(kind):
    return (
        isinstance(kind, type)
        and issubclass(kind, optim.Optimization)
        and not inspect.isabstract(kind)
        and kind.__name__[0] != "_"
    )


def test_a_schedule_wants_a_data_module(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=8, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, 4)
    model.optimization = OneCycleAdam(1e-3, (1, 1, 0, 0))
    with pytest.raises(UserError, match="takes the length of an epoch from a data module"):
        quiet_trainer(max_epochs=1).fit(model, data.train_dataloader(), data.val_dataloader())


@pytest.mark.parametrize(("milestones", "rates"), [(None, [1, 1, 1, 1]), ([1, 3], [1, 0.5, 0.5, 0.25])])
def test_step_adam_lowers_its_rate_at_milestones_alone(milestones, rates):
    (optimizer,), (schedule,) = StepAdam(1.0, milestones, decay=2.0).configure(torch.nn.Linear(2, 3))
    seen = []
    for _ in rates:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == rates


def test_rmsprop_takes_a_rate_and_a_decay():
    optimizer = RMSProp(0.01, 0.3).configure(torch.nn.Linear(2, 3))
    assert isinstance(optimizer, FlooredRMSprop)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["decay"]) == (0.01, 0.3)


def test_one_cycle():
    optimizer = torch.optim.Adam(parameters(), lr=1.0, betas=(0.8, 0.99))
    schedule = OneCycle(optimizer, rate=1.0, updates=(4, 3, 2, 4), div=10, momentum=(0.8, 0.6))
    rates, momenta = [], []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step()
    anneal = [0.1 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx([0.1, 0.325, 0.55, 0.775, 1, 1, 1, 1, 0.55, *anneal, 0])
    assert momenta == pytest.approx([0.8, 0.75, 0.7, 0.65, 0.6, 0.6, 0.6, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert optimizer.param_groups[0]["betas"][1] == 0.99


def test_a_schedule_counts_updates(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=8, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, 4)
    model.optimization = OneCycleAdam(1e-3, (1, 1, 0, 0))
    trainer = quiet_trainer(max_epochs=2, accumulate_grad_batches=3)
    trainer.fit(model, datamodule=data)
    updates = -(-len(data.train_dataloader()) // 3)
    assert trainer.global_step == 2 * updates
    assert trainer.lr_scheduler_configs[0].scheduler.ends[:2] == [updates, 2 * updates]


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({"max_epochs": 6}, (6, 12, 15, 18)),  # three times the phases' epochs, of 3 updates
        ({"max_epochs": -1, "max_steps": 12}, (4, 8, 10, 12)),
        ({"max_epochs": 2, "limit_train_batches": 2}, (2, 3, 4, 4)),
    ],
)
def test_a_schedule_spans_the_run(options, updates, data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=8, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, 4)
    model.optimization = OneCycleAdam(1e-3, (1, 1, 0.5, 0.5))
    trainer = quiet_trainer(**{"limit_train_batches": 3, "limit_val_batches": 0} | options)
    trainer.fit(model, datamodule=data)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert tuple(scheduler.ends) == pytest.approx(updates, abs=1)
    assert scheduler.last_epoch == trainer.global_step == updates[-1]


def test_a_schedule_of_a_run_without_end(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=8, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, 4)
    model.optimization = DiscriminativeAdam()
    with pytest.raises(UserError, match="give one of them"):
        quiet_trainer(max_epochs=-1).fit(model, datamodule=data)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: NTASGD(p, lr=-1), "lr"),
        (lambda p: NTASGD(p, lr=1, weight_decay=math.nan), "weight_decay"),
        (lambda p: NTASGD(p, lr=1, non_monotone=0), "non_monotone"),
        (lambda p: PlateauSGD(p, lr=1, decay=1), "decay"),
        (lambda p: PlateauSGD(p, lr=1, patience=-1), "patience"),
        (lambda p: FlooredRMSprop(p, lr=math.inf, decay=0.5), "lr"),
        (lambda p: FlooredRMSprop(p, lr=1, decay=1.1), "decay"),
        (lambda p: FlooredRMSprop(p, lr=1, decay=0.5, floor=0), "floor"),
        (lambda p: ClippedUpdateAdam(p, lr=1, max_update_norm=0), "max_update_norm"),
        (lambda _: DecayedSGD(-1, 4, 2), "learning_rate"),
        (lambda _: DecayedSGD(1, -1, 2), "constant_epochs"),
        (lambda _: DecayedSGD(1, 4, 0), "decay"),
        (lambda _: StepAdam(math.nan), "learning_rate"),
        (lambda _: StepAdam(1, weight_decay=-1), "weight_decay"),
        (lambda _: OneCycleAdam(1, (1, 1, 1, 1), div=0), "div"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(UserError, match=f"{name} is"):
        make(parameters())
