import torch
from torch import nn

from fedsparse.federated import Server
from fedsparse.wire import Values, decode, encode


def test_sent_values_are_those_that_the_wire_delivers() -> None:
    torch.manual_seed(0)
    for wire in ("fp32", "fp16", "bf16", "int8"):
        server = Server(nn.Sequential(nn.Linear(50, 4, bias=False)), 0, ["0"], 1, (50,), [1], wire=wire)
        server.set_masks({"0": torch.rand(4, 50) < 0.5})
        server.layers["0"].values.data[:3] = torch.tensor([1e-9, 1.0 + 2**-11, -3.0])
        data = encode("weights", 3, -1, server.sections(3))
        delivered = decode(data).sections["parameters"]
        assert isinstance(delivered, Values)
        sent = server.sent_values(3)["0"]
        assert torch.equal(sent, delivered.tensor())
        sent.zero_()
        assert bool(server.layers["0"].values.any()), "a copy"
