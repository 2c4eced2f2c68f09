import numpy as np
import pytest
import torch

from fedsparse.federated.validate import UpdateError, judge
from fedsparse.wire import Pairs, PairsSpec, Values, ValuesSpec, encode

EXPECT = {"w": ValuesSpec(3), "g": PairsSpec(10, count=2)}


def report(
    samples: float = 5,
    w: object = (1.0, 2.0, 3.0),
    kind: str = "report",
    round: int = 4,
    sender: int = 7,
    g: float = 1.0,
) -> bytes:
    sections = {
        "facts": Values(np.array([samples, 0.5])),
        "w": Values(torch.tensor(w)),
        "g": Pairs(torch.tensor([1, 4]), torch.tensor([g, 2.0]), 10),
    }
    return encode(kind, round, sender, sections)


def test_a_good_report_is_taken() -> None:
    facts, sections = judge(report(), "report", 4, 7, 5, EXPECT)
    assert (facts.samples, facts.loss) == (5, 0.5)
    assert sections["w"].tensor().tolist() == [1.0, 2.0, 3.0]
    assert set(sections) == {"w", "g"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (report(w=(1.0, float("nan"), 3.0)), "w holds a number that is not finite"),
        (report(w=(1.0, float("-inf"), 3.0)), "w holds a number that is not finite"),
        (report(g=float("nan")), "g holds a number that is not finite"),
        (report(w=(1.0, 1e12, 3.0)), "magnitude"),
        (report(samples=-1), "-1 samples"),
        (report(samples=0), "0 samples"),
        (report(samples=1e12), "declared 5"),
        (report(samples=2.5), "2.5 samples"),
        (report(samples=float("nan")), "nan samples"),
        (report(w=(1.0,)), "w"),
        (report(w=((1.0, 2.0, 3.0),)), "w"),
        (report(round=3), "round 3"),
        (report(sender=8), "client 8"),
        (report(kind="mask"), "mask"),
        (report()[:-1], ""),
        (b"", ""),
    ],
)
def test_a_bad_report_is_refused_in_one_sentence(data: bytes, words: str) -> None:
    with pytest.raises(UpdateError) as error:
        judge(data, "report", 4, 7, 5, EXPECT)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
