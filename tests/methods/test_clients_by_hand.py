"""Two adjustments of methods whose clients change masks, from local training to the server's mask, by hand.

One 3 x 4 layer without biases; the loss is the mean of y_0 + 2 y_1 - y_2, so that the gradient of weight (n, c) is
(1, 2, -1)_n times the mean of x_c, whatever the weights are. Client A has one sample (1, 0, 2, 0), client B three
(-1, 1, 0, 3). SGD at learning rate 1; two epochs of one minibatch, the adjustment between them. Of 12 weights 4 are
active, and k = floor(.5 * 4) = 2 are adjusted.

    g of A    1  0  2  0    2  0  4  0   -1  0 -2  0
    g of B   -1  1  0  3   -2  2  0  6    1 -1  0 -3
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.federated import Client, Experiment, Loop, Training
from fedsparse.methods import FedDST, FedSGC
from fedsparse.nn import sparse_layers
from fedsparse.pruning import from_groups
from fedsparse.wire import Pairs

SETTINGS: dict[str, Any] = {
    "density": 0.34, "interval": 1, "last": 9, "decay": "constant", "rate": 0.5, "prune_last": True,
}  # fmt: skip


class Watched:
    """The loss above, and what each client trained: {index: weight} by round and client."""

    def loss(self, client: Client, output: Tensor, target: Tensor) -> Tensor:
        return (output @ torch.tensor([1.0, 2.0, -1.0])).mean()

    def report(self, client: Client) -> dict[str, Any]:
        sections = super().report(client)  # type: ignore[misc]
        layer = sparse_layers(client.model)["1"]
        weights = dict(zip(layer.topology.flat().tolist(), layer.values.tolist()))
        pairs = sections.get("gradients")
        gradients = dict(zip(pairs.indices.tolist(), pairs.tensor().tolist())) if isinstance(pairs, Pairs) else {}
        SEEN[client.round, "AB"[client.id]] = weights, gradients
        return sections


SEEN: dict[tuple[int, str], tuple[dict[int, float], dict[int, float]]] = {}


def opened(method: Any, active: dict[int, float]) -> Loop:
    SEEN.clear()
    samples = torch.tensor([[1.0, 0, 2, 0], *[[-1.0, 1, 0, 3]] * 3]).view(4, 1, 1, 4)
    data = Dataset("toy", samples, torch.tensor([0, 1, 2, 0]), 3, (0.0,), (1.0,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    training = Training(20, 2, epochs=2, batch_size=3, lr=1.0, momentum=0.0)
    loop = Loop(Experiment(model, method, data, data, [np.array([0]), np.array([1, 2, 3])], training))
    loop.open()
    loop.server.layers["1"].set_topology(from_groups(torch.tensor(list(active)), (3, 4)))
    loop.server.load(torch.tensor(list(active.values())), torch.zeros(0))
    return loop


def server_after(loop: Loop, t: int) -> dict[int, float]:
    assert loop.round(t)["rejected"] == []
    layer = loop.server.layers["1"]
    return dict(zip(layer.topology.flat().tolist(), layer.values.tolist()))


START = {0: 12.0, 1: -2.5, 4: 1.0, 5: 2.0}


def test_feddst_by_hand() -> None:
    """Round 1 from 0: 12, 1: -2.5, 4: 1, 5: 2.

      A  11 -2.5 -1 2    prunes 4 and 5; |g| 6: 4, and of 2, 4 and 10 with 2 the lowest: grows 6 and 2;  then 10 -2.5 -2 -4
      B  13 -3.5 3 0     prunes 5 and 4; |g| 7: 6, and of 3 and 11 with 3 the lower: grows 7 and 3;      then 14 -4.5 -3 -6
      mean   0: (10 + 42)/4   1: (-2.5 - 13.5)/4   2: -2   3: -3   6: -4   7: -6: the 4 largest are 0, 7, 1 and 6
    Round 2 from 0: 13, 1: -4, 6: -4, 7: -6.
      A  12 -4 -8 -6     prunes 1 and 7; |g| 2, 4 and 10: 2: grows 2 and 4;  then 11 -2 -2 -12
      B  14 -5 -4 -12    prunes 6 and 1; |g| 3 and 11: 3: grows both;        then 15 -3 -18 3
      mean   0: (11 + 45)/4   2: -2   3: -3   4: -2   6: -12   7: -18   11: 3: 7, 0, 6, and of 3 and 11 the lower
    """

    class Method(Watched, FedDST):
        pass

    loop = opened(Method(**SETTINGS), START)
    assert server_after(loop, 1) == {0: 13.0, 1: -4.0, 6: -4.0, 7: -6.0}
    assert SEEN[1, "A"][0] == {0: 10.0, 1: -2.5, 2: -2.0, 6: -4.0}
    assert SEEN[1, "B"][0] == {0: 14.0, 1: -4.5, 3: -3.0, 7: -6.0}
    assert server_after(loop, 2) == {0: 14.0, 3: -3.0, 6: -12.0, 7: -18.0}
    assert SEEN[2, "A"][0] == {0: 11.0, 2: -2.0, 4: -2.0, 6: -12.0}
    assert SEEN[2, "B"][0] == {0: 15.0, 3: -3.0, 7: -18.0, 11: 3.0}


def test_fedsgc_by_hand() -> None:
    """As FedDST in round 1, since D is 0; lambda = beta = .5, so that D may choose 1 of 2. All clients take part.

    Round 1: of what stays inactive A reports 4: 2 and 10: -2, B 11: -3, and of 4 and 5 with 2 the lower, 4: -2.
      the server's weights moved   0: +   1: -   4: -   5: -   6: -   7: -    (4 and 5 to 0; 2 and 3 were and are 0)
      nobody had                   4: (2 - 6)/4 up, instead of its movement   10: -2/4 up   11: -9/4 up
      D                            +-00 +--- 00++
    Round 2 from 0: 13, 1: -4, 6: -4, 7: -6.
      A  12 -4 -8 -6     moved - 0 - 0, 0 against D: prunes 0 first, then the lowest, 1 (FedDST 1 and 7)
         inactive |g|    0: 1  2: 2  4: 2  8: 1  10: 2; -g along D at 10 alone: grows it first, then 2 (FedDST 2 and 4)
         reports         4: 2, and of 0 and 8 with 1 the lower, 0: 1
         then            2: -2   6: -12   7: -6   10: 2
      B  14 -5 -4 -12    moved + - 0 -, all along D: prunes the lowest, 6 and 1
         inactive |g|    1: 1  3: 3  4: 2  5: 2  8: 1  9: 1  11: 3; -g along D at 1, 4, 5 and 11: grows 11, then 3
         reports         4: -2  5: 2
         then            0: 15   3: -3   7: -18   11: 3
      mean               0: 15   2: -2   3: -3   6: -12   7: (-6 - 54)/4   10: 2   11: 3: 0, 7, 6, of 3 and 11 the lower
      moved              0: +   1: + (to 0)   3: -   6: -   7: -
      nobody had         4: (2 - 6)/4 up   5: 6/4 down   (0 was B's)
      D                  ++0- +--- 0000
    """

    class Method(Watched, FedSGC):
        pass

    loop = opened(Method(**SETTINGS), START)
    assert server_after(loop, 1) == {0: 13.0, 1: -4.0, 6: -4.0, 7: -6.0}
    assert SEEN[1, "A"] == ({0: 10.0, 1: -2.5, 2: -2.0, 6: -4.0}, {4: 2.0, 10: -2.0})
    assert SEEN[1, "B"] == ({0: 14.0, 1: -4.5, 3: -3.0, 7: -6.0}, {4: -2.0, 11: -3.0})
    assert loop.server.state["direction"].tolist() == [1, -1, 0, 0, 1, -1, -1, -1, 0, 0, 1, 1]
    assert server_after(loop, 2) == {0: 15.0, 3: -3.0, 6: -12.0, 7: -15.0}
    assert SEEN[2, "A"] == ({2: -2.0, 6: -12.0, 7: -6.0, 10: 2.0}, {0: 1.0, 4: 2.0})
    assert SEEN[2, "B"] == ({0: 15.0, 3: -3.0, 7: -18.0, 11: 3.0}, {4: -2.0, 5: 2.0})
    assert loop.server.state["direction"].tolist() == [1, 1, 0, -1, 1, -1, -1, -1, 0, 0, 0, 0]
