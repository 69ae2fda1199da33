"""Two teams of two ranks, each of which has frames of its own and a tower split over its ranks."""

import pytest

from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.layouts import check

LAYOUTS = {
    "TP2 x MR-SP2": TP2 | CP2,
    "TP2 x PP2": TP2 | PP2,
    "TP2 with sequence parallelism x DP2": TP2 | SP,
}


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_loss_and_gradients(tiny_data, layout, chunk):
    check(tiny_data, **layout, vision_tensor_parallel=True, encoder_chunk_frames=chunk)
