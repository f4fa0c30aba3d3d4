"""Every image is in one step of one process per epoch."""

import numpy as np
from edgekit.toolkit.training.sharding import Share, divided, step_count
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 8))
def test_no_image_is_lost_or_repeated(images: int, batch_size: int, processes: int) -> None:
    """Over all steps and processes; batches are no larger than asked, and equal up to one image."""
    batches = divided(np.random.default_rng(0).permutation(images), batch_size)
    assert len(batches) == step_count(images, batch_size)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    seen = np.concatenate([Share(rank, processes).of(batch) for batch in batches for rank in range(processes)])
    assert sorted(seen.tolist()) == list(range(images))
