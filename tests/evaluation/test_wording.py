"""What is said of scores whose intervals are known."""

import pytest

from xbm_keras.evaluation.wording import AVERAGED, gains_of_averages, verdict


def items(frozen, closed_form, trained, above_frozen, above_closed_form):
    of = {"map_at_r": trained}
    of |= {"map_at_r_above_frozen_interval": above_frozen, "map_at_r_above_closed_form_interval": above_closed_form}
    return {"leave_one_out": {"frozen": {"map_at_r": frozen}, "closed_form": {"map_at_r": closed_form}, "trained": of}}


@pytest.mark.parametrize(
    ("metrics", "tone", "expected"),
    [
        (
            items(0.5, 0.6, 0.7, [0.1, 0.3], [0.05, 0.15]),
            "good",
            "0.200 MAP@R above the frozen features (95 % interval over classes +0.100 to +0.300), and 0.100 above its "
            "closed form (95 % interval over classes +0.050 to +0.150).",
        ),
        (
            items(0.5, 0.6, 0.62, [0.1, 0.14], [-0.01, 0.05]),
            "good",
            "and not surely better than its closed form: MAP@R 0.620 against 0.600 (95 % interval over classes -0.010",
        ),
        (
            items(0.5, 0.49, 0.51, [-0.02, 0.04], [0.01, 0.03]),
            "plain",
            "not surely better than the frozen features: MAP@R 0.510 against 0.500 (95 % interval over classes -0.020",
        ),
        (
            items(0.5, 0.4, 0.48, [-0.05, 0.01], [0.0, 0.1]),
            "plain",
            "not surely better than the frozen features: MAP@R 0.480 against 0.500 (95 % interval over classes -0",
        ),
        (items(0.5, 0.4, 0.4, [-0.15, -0.05], [0.0, 0.0]), "bad", "WORSE than the frozen features"),
        (
            items(0.5, 0.63, 0.6, [0.05, 0.15], [-0.05, -0.01]),
            "plain",
            "made it worse than its closed form start, by 0.030 (95 % interval over classes -0.050 to -0.010): use",
        ),
        (
            items(0.5, 0.6, 0.5004, [-0.01, 0.01], [-0.12, -0.08]),
            "plain",
            "next to nothing: MAP@R 0.500, frozen 0.500 (95 % interval over classes -0.010 to +0.010), but training "
            "made it worse than its closed form start, by 0.100 (95 % interval over classes -0.120 to -0.080): use t",
        ),
        (
            items(0.5, 0.6, 0.505, [-0.01, 0.02], [-0.12, -0.08]),
            "plain",
            "to +0.020), but training made it worse than its closed form start, by 0.095",
        ),
        (
            items(0.5, 0.6, 0.49, [-0.02, -0.005], [-0.13, -0.09]),
            "bad",
            "to -0.005), and training made it worse than its closed form start, by 0.110",
        ),
        (
            items(0.5, 0.6, 0.7, [0.2, 0.2], [0.1, 0.1]),
            "plain",
            "not surely better than the frozen features: MAP@R 0.700 against 0.500 (of one class alone, which tells no",
        ),
        (
            items(0.5, 0.61, 0.6, [0.05, 0.15], [-0.02, 0.01]),
            "good",
            "and not surely better than its closed form: MAP@R 0.600 against 0.610 (95 % interval over classes -0.020",
        ),
        (
            items(0.5, 0.6, 0.6004, [0.05, 0.15], [-0.001, 0.002]),
            "good",
            "by its closed form alone: training changed next to nothing (95 % interval over classes -0.001 to +0.002).",
        ),
    ],
)
def test_better_is_said_where_the_interval_excludes_zero(metrics, tone, expected):
    found, said = verdict(metrics)
    assert found == tone
    assert expected in said
    for other, called in (("frozen", "the frozen features"), ("closed_form", "its closed form")):
        low, high = metrics["leave_one_out"]["trained"][f"map_at_r_above_{other}_interval"]
        is_sure = 0 < low < high
        assert is_sure or f"above {called}" not in said


def test_a_head_is_compared_with_its_start_of_the_same_width():
    metrics = items(0.3, 0.34, 0.352, [0.04, 0.06], [0.008, 0.015])
    metrics["leave_one_out"] |= {"closed_form@8": {"map_at_r": 0.48}, "trained@8": {"map_at_r": 0.48}}
    tone, said = verdict(metrics)
    assert tone == "good"
    assert said.endswith("and 0.012 above its closed form (95 % interval over classes +0.008 to +0.015).")


def pairs(above, interval):
    trained = {
        "ndcg_at_10": 0.6 + above,
        "ndcg_at_10_above_frozen": above,
        "ndcg_at_10_above_frozen_interval": interval,
    }
    return {"frozen": {"ndcg_at_10": 0.6}, "trained": trained}


def test_what_is_learnt_by_heart_does_not_count():
    metrics = {"pairs": pairs(0.1, [0.05, 0.15]), "pairs_unseen_documents": pairs(-0.02, [-0.05, 0.01])}
    tone, said = verdict(metrics)
    assert tone == "plain"
    assert "not surely better" in said
    assert "0.580 against 0.600 of queries whose documents never trained" in said
    assert "Of all test queries 0.700 against 0.600" in said
    assert verdict({"pairs": pairs(0.1, [0.05, 0.15])})[0] == "good"
    assert verdict({"pairs": pairs(-0.1, [-0.15, -0.05])})[0] == "bad"


@pytest.mark.parametrize(
    ("epoch", "said"),
    [
        (0, "The closed form, which no epoch bettered, keeps 90.0% of the ten nearest neighbours."),
        (3, "The trained head keeps 90.0% of the ten nearest neighbours, 1.0 points more than its closed form."),
    ],
)
def test_a_closed_form_is_not_called_trained(epoch, said):
    kept = {"closed_form": 0.89 if epoch else 0.9, "trained": 0.9}
    neighbors = {name: {"neighbor_overlap_at_10": value} for name, value in kept.items()}
    assert verdict({"neighbors": neighbors, "validation": {"epoch": epoch}})[1] == said


@pytest.mark.parametrize(
    ("kept", "interval", "tone", "said"),
    [
        (
            0.92,
            [0.01, 0.03],
            "good",
            ", 2.0 points more than its closed form (95 % interval over items +1.0 to +3.0 points)",
        ),
        (
            0.92,
            [-0.01, 0.05],
            "plain",
            ", not surely more than the 90.0% of its closed form (95 % interval over items -1.0",
        ),
        (
            0.8997,
            [-0.0005, -0.0001],
            "plain",
            ", as its closed form does to a tenth of a point (95 % interval over items",
        ),
        (
            0.88,
            [-0.05, 0.01],
            "plain",
            ", not surely less than the 90.0% of its closed form (95 % interval over items -5.0",
        ),
        (
            0.88,
            [-0.03, -0.01],
            "bad",
            ", 2.0 points LESS than its closed form (95 % interval over items -3.0 to -1.0 points)",
        ),
    ],
)
def test_more_neighbours_are_kept_where_the_interval_excludes_zero(kept, interval, tone, said):
    neighbors = {name: {"neighbor_overlap_at_10": each} for name, each in (("closed_form", 0.9), ("trained", kept))}
    neighbors["trained"]["neighbor_overlap_at_10_above_closed_form_interval"] = interval
    assert verdict({"neighbors": neighbors})[0] == tone
    assert said in verdict({"neighbors": neighbors})[1]


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.01, 0.03], "more, MAP@R +0.020 (95 % interval over classes +0.010 to +0.030)."),
        ([-0.01, 0.05], "not surely more or less, MAP@R +0.020 (95 % interval over classes -0.010 to +0.050)."),
        ([0.02, 0.02], "not surely more or less, MAP@R +0.020 (of one class alone, which tells no interval)."),
    ],
)
def test_averages_find_more_where_the_interval_excludes_zero(interval, said):
    found = {"map_at_r_above_trained": 0.02, "map_at_r_above_trained_interval": interval}
    lines = gains_of_averages({"leave_one_out": dict.fromkeys(AVERAGED, found)})
    assert lines == [f"Averaged in queries {where}, leave-one-out: {said}" for where in ("and gallery", "alone")]
