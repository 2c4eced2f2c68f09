import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsparse.federated import Server, Total, coordinates, exchange
from fedsparse.federated.validate import UpdateError
from fedsparse.pruning import from_groups
from fedsparse.wire import Bitmap, Section, Values


def two_layers(granularity: int = 1) -> Server:
    """Two linear layers of 2 x 3 groups, without and with a bias; active groups 1, 3 and 0, 1, 5; clients of 1 and 3."""
    V = granularity
    model = nn.Sequential(nn.Linear(3, 2 * V, bias=False), nn.Linear(3, 2 * V))
    server = Server(model, 0, ["0", "1"], V, (3,), [1, 3])
    server.set_masks(
        {
            "0": from_groups(torch.tensor([1, 3]), (2 * V, 3), V).mask(),
            "1": from_groups(torch.tensor([0, 1, 5]), (2 * V, 3), V).mask(),
        }
    )
    return server


def report(groups: list[int], parameters: Tensor) -> dict[str, Section]:
    mask = torch.zeros(12, dtype=torch.bool)
    mask[groups] = True
    return {"mask": Bitmap(mask), "parameters": Values(parameters), "buffers": Values(torch.zeros(0))}


@pytest.mark.parametrize("V", [1, 2])
def test_parameters_split_by_layer_and_join_again(V: int) -> None:
    server = two_layers(V)
    vector = torch.arange(5 * V + 2 * V, dtype=torch.float32)
    values, rest = exchange.split_parameters(server.model, vector)
    assert {name: v.tolist() for name, v in values.items()} == {
        "0": list(range(2 * V)),
        "1": list(range(2 * V, 5 * V)),
    }
    assert rest.tolist() == list(range(5 * V, 7 * V))
    assert torch.equal(exchange.join_parameters(server.model, values, rest), vector)


def test_coordinates_of_groups_of_two_rows() -> None:
    """(4, 3) weights, V = 2: group 4 of a layer is column 1 of rows 2 and 3, the flat weights 7 and 10.

    Groups 4 and 6 + 2 of the model: 7 and 10, and behind the 12 weights of the first layer 12 + 2 and 12 + 5.
    """
    server = two_layers(2)
    assert coordinates.of_groups(server.model, torch.tensor([4, 8])).tolist() == [[7, 10], [14, 17]]
    mask = torch.from_numpy(coordinates.of_bits(server.model, exchange.mask_bits(server.model)).mask())
    assert torch.equal(mask, torch.cat([layer.topology.mask().flatten() for layer in server.layers.values()]))
    places, weights = coordinates.active(server.model)
    assert torch.equal(places, mask.nonzero().flatten())
    dense = coordinates.look_up(places, weights, torch.arange(coordinates.size(server.model)))
    assert torch.equal(coordinates.split(server.model, dense)["1"], server.layers["1"].dense_weight())
    which, local = coordinates.by_layer(server.model, places)["1"]
    assert torch.equal(local, server.layers["1"].topology.flat())
    assert torch.equal(weights[which], server.layers["1"].values)


@pytest.mark.parametrize("V", [1, 2])
def test_values_follow_the_clients_mask(V: int) -> None:
    """The client has group 0 instead of 1 in the first layer and 2 instead of 0 in the second."""
    server = two_layers(V)
    parameters = torch.arange(1, 7 * V + 1, dtype=torch.float32)
    sections = coordinates.digest(server, report([0, 3, 7, 8, 11], parameters))
    assert set(sections) == {"weights", "rest", "buffers"}
    total = Total(declared=1)
    total.add(0, 1, sections)
    places, mean, share = total.masked("weights")
    topologies = [from_groups(torch.tensor(g), (2 * V, 3), V) for g in ([0, 3], [1, 2, 5])]
    expected = [topologies[0].unpack(parameters[: 2 * V]), topologies[1].unpack(parameters[2 * V : 5 * V])]
    whole = torch.cat([e.flatten() for e in expected])
    assert torch.equal(places, whole.nonzero().flatten())
    assert torch.equal(mean, whole[places])
    assert share.tolist() == [1.0] * (5 * V)
    assert torch.equal(total.mean("rest"), parameters[5 * V :])


def test_counts_of_each_layer_must_be_the_servers() -> None:
    with pytest.raises(UpdateError, match="mask has 3 weights in 0, not 2"):
        coordinates.digest(two_layers(), report([0, 1, 2, 6, 7], torch.ones(7)))


def test_idle_clients_count_with_the_servers_weights_and_mask() -> None:
    """One client of 1 sample has groups 1, 2 | 0, 1, 5 at 8, the server 1, 3 | 0, 1, 5 at 4; idle weigh 3 samples.

    1: (8 + 3 * 4) / 4 = 5; 2: client only, 8; 3: idle only, 4; layer 1: 5 each. Biases 8 and 4: 5. Without idle: 8
    where the client has it, and 3 is held by nobody.
    """
    server = two_layers()
    server.load(torch.full((7,), 4.0), torch.zeros(0))
    total = Total(declared=1)
    total.add(0, 1, coordinates.digest(server, report([1, 2, 6, 7, 11], torch.full((7,), 8.0))))
    merged = coordinates.merge(server, total, idle=3)
    assert merged.places.tolist() == [1, 2, 3, 6, 7, 11]
    assert merged.weights.tolist() == [5, 8, 4, 5, 5, 5]
    assert merged.rest.tolist() == [5.0, 5.0]
    alone = coordinates.merge(server, total)
    assert alone.places.tolist() == [1, 2, 6, 7, 11]
    assert alone.weights.tolist() == [8] * 5
    assert alone.rest.tolist() == [8.0, 8.0]
    coordinates.load_largest(server, merged)
    assert server.layers["0"].topology.flat().tolist() == [1, 2]
    assert server.layers["0"].values.tolist() == [5.0, 8.0]
    assert server.layers["1"].topology.flat().tolist() == [0, 1, 5]
    assert server.layers["1"].bias.tolist() == [5.0, 5.0]
    assert server.changed == pytest.approx(1 / 5)


def test_what_moved() -> None:
    """Weights 4 at 1, 3 | 6, 7, 11; then 5 at 1, 2 instead of 3: +1, +5, -4, and 0 in the second layer."""
    server = two_layers()
    server.load(torch.full((7,), 4.0), torch.zeros(0))
    before = coordinates.active(server.model)
    server.change_masks({"0": from_groups(torch.tensor([1, 2]), (2, 3))})
    server.layers["0"].values.data.fill_(5.0)
    places, moved = coordinates.movement(before, server.model)
    assert places.tolist() == [1, 2, 3, 6, 7, 11]
    assert moved.tolist() == [1, 5, -4, 0, 0, 0]


def test_an_unchanged_mask_is_no_new_version() -> None:
    server = two_layers()
    before = server.mask_version
    server.change_masks({"0": from_groups(torch.tensor([1, 3]), (2, 3))})
    assert (server.mask_version, server.changed) == (before, 0.0)
    server.change_masks({"0": from_groups(torch.tensor([1]), (2, 3))})
    assert (server.mask_version, server.changed) == (before + 1, 0.0)


def test_integer_sums_do_not_move_a_weight_that_all_agree_on() -> None:
    server = two_layers()
    weights = torch.tensor(np.random.default_rng(0).standard_normal(7), dtype=torch.float32)
    server.load(weights, torch.zeros(0))
    total = Total(declared=7)
    for id, samples in enumerate((1, 6)):
        total.add(id, samples, coordinates.digest(server, report([1, 3, 6, 7, 11], weights)))
    coordinates.load_largest(server, coordinates.merge(server, total, idle=5))
    assert torch.allclose(exchange.parameters(server.model), weights, rtol=1e-6, atol=0)
