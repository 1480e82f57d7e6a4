import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2.runtime import packed_arrays
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import as_path
from mnv2.training.checkpoint import Checkpoints, NotFinite, Timing
from mnv2.training.state import TrainState


def state_of(step):
    params = {"kernel": jnp.full((64, 64), float(step)), "bias": jnp.arange(5.0) * step}
    return TrainState(
        jnp.asarray(step),
        params,
        {"mean": jnp.ones(3) * step},
        optax.sgd(0.1).init(params),
        ema=None,
        skipped=jnp.asarray(0),
        skipped_in_a_row=jnp.asarray(0),
    )


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, state_of(step), Timing(step / 2, step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def files_of(folder, step):
    return sorted((p for p in (folder / str(step)).rglob("*") if p.is_file()), key=str)


def truncate(paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(paths):
    for path in paths:
        path.unlink()


def garble(paths):
    for path in paths:
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


@pytest.mark.parametrize("damage", [truncate, delete, garble])
def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_it_used(folder, damage, capsys):
    damage(files_of(folder, 20))
    checkpoints = Checkpoints(folder)
    state, timing = checkpoints.restore(state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(10))
    assert timing == Timing(5.0, 10)
    assert "warning: the checkpoint of step 20 is damaged" in capsys.readouterr().err
    assert len(list((folder.parent / "damaged").glob("20-*"))) == 1
    # Training goes on, and saves that step anew.
    checkpoints.save(20, state_of(20), Timing(10.0, 20))
    checkpoints.close()
    state, _ = Checkpoints(folder).restore(state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(20))


def test_a_bit_that_has_flipped_is_seen(folder, capsys, monkeypatch):
    crc32 = packed_arrays.zlib.crc32
    flips = [1, 0, 0, 0]  # in what is read first, the newest

    def flipped(data):
        return crc32(data) ^ flips.pop(0)

    monkeypatch.setattr(packed_arrays.zlib, "crc32", flipped)
    state, _ = Checkpoints(folder).restore(state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(10))
    assert "the checksum of its" in capsys.readouterr().err


def test_a_state_of_another_network_is_refused(folder):
    other = state_of(0)
    other.params["kernel"] = jnp.zeros((3, 3))
    with pytest.raises(
        UserError, match=r"has float32 \(64, 64\) for params/kernel, not float32 \(3, 3\)"
    ):
        Checkpoints(folder).restore(other)


def test_where_every_checkpoint_is_damaged_none_is_touched(folder):
    for step in (10, 20):
        delete(files_of(folder, step))
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be read .* move that folder away"
    ):
        Checkpoints(folder).restore(state_of(0))
    assert not (folder.parent / "damaged").exists()


def test_each_file_of_a_checkpoint_matters_or_is_restored_without(folder):
    """Whichever one file is lost, the state is that of step 20 or of step 10, never a mixture."""
    for lost in files_of(folder, 20):
        content = lost.read_bytes()
        lost.unlink()
        checkpoints = Checkpoints(folder)
        state, _ = checkpoints.restore(state_of(0))
        step = int(state.step)
        assert step in (10, 20)
        jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
        checkpoints.close()
        if step == 20:
            lost.write_bytes(content)
        else:
            aside = next((folder.parent / "damaged").glob("20-*"))
            (aside / lost.relative_to(folder / "20")).write_bytes(content)
            aside.rename(folder / "20")


def test_a_checkpoint_that_has_no_room_is_one_clear_line_and_the_one_before_stays(
    folder, monkeypatch
):
    checkpoints = Checkpoints(folder)
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = r"cannot save step 30 in .*: 0.0 MB are free, 1\.1 are needed; .* of step 20, in "
    with pytest.raises(UserError, match=message):
        checkpoints.save(30, state_of(30), Timing())
    monkeypatch.undo()
    folder.rename(folder.with_name("moved"))
    with pytest.raises(UserError, match=r"cannot save step 30 in .*: the folder is gone"):
        checkpoints.save(30, state_of(30), Timing())
    folder.with_name("moved").rename(folder)
    checkpoints.save(30, state_of(30), Timing())
    checkpoints.close()
    restored, _ = Checkpoints(folder).restore(state_of(0))
    assert int(restored.step) == 30


def test_an_error_without_a_message_is_named_by_its_type(folder, monkeypatch):
    def fail(*_, **__):
        raise TimeoutError

    checkpoints = Checkpoints(folder)
    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(UserError, match=r"cannot write to .*: TimeoutError; the newest checkpoint"):
        checkpoints.save(9, state_of(9), Timing())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_not_saved_and_the_one_before_stays(folder, value):
    poisoned = state_of(30)
    poisoned.params["bias"] = poisoned.params["bias"].at[2].set(value)
    checkpoints = Checkpoints(folder)
    with pytest.raises(NotFinite, match=r"after step 30 is not finite .* is that of step 20"):
        checkpoints.save(30, poisoned, Timing())
    checkpoints.close()
    assert int(Checkpoints(folder).restore(state_of(0))[0].step) == 20


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_a_file_system_that_fails_for_a_moment_is_not_damage(folder, monkeypatch, number):
    def failing(*_):
        try:
            raise OSError(number, "not now")
        except OSError as error:
            raise ValueError("Orbax wraps errors") from error

    monkeypatch.setattr(packed_arrays, "read", failing)
    with pytest.raises(UserError, match=r"cannot read the checkpoint of step 20 now .*: try again"):
        Checkpoints(folder).restore(state_of(0))
    monkeypatch.undo()
    assert int(Checkpoints(folder).restore(state_of(0))[0].step) == 20
    assert not (folder.parent / "damaged").exists()


@pytest.fixture
def stored(bucket, request):
    """Checkpoints of steps 10 and 20 in a bucket."""
    folder = as_path(f"{bucket}/{request.node.name}/checkpoints")
    checkpoints = Checkpoints(folder)
    for step in (10, 20):
        checkpoints.save(step, state_of(step), Timing(step / 2, step))
    checkpoints.close()
    return folder


def test_a_damaged_checkpoint_in_a_bucket_is_kept_aside_and_the_one_before_it_used(stored, capsys):
    for part in (stored / "20/state/d").iterdir():
        part.unlink()
    state, timing = Checkpoints(stored).restore(state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(10))
    assert timing == Timing(5.0, 10)
    assert "the checkpoint of step 20 is damaged and was moved to" in capsys.readouterr().err
    assert not (stored / "20").exists()
    assert len(list(stored.parent.glob("damaged/20-*/state/_METADATA"))) == 1


def test_a_checkpoint_in_a_bucket_that_was_not_completed_is_written_again(stored):
    (stored / "20/commit_success.txt").unlink()  # as if the process had been killed before it
    checkpoints = Checkpoints(stored)
    assert checkpoints.newest().startswith("the newest checkpoint is that of step 10, in gs://")
    state, _ = checkpoints.restore(state_of(0))
    assert int(state.step) == 10
    checkpoints.save(20, state_of(20), Timing(10.0, 20))
    checkpoints.close()
    jax.tree.map(
        np.testing.assert_array_equal, Checkpoints(stored).restore(state_of(0))[0], state_of(20)
    )


def test_storage_that_does_not_answer_is_not_damage(stored, monkeypatch):
    def failing(*_):
        raise ValueError("UNAVAILABLE: Error reading 'gs://bucket/x'")

    monkeypatch.setattr(packed_arrays, "read", failing)
    with pytest.raises(UserError, match=r"cannot read the checkpoint of step 20 now .*: try again"):
        Checkpoints(stored).restore(state_of(0))
    assert (stored / "20").exists()
