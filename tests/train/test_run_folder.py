"""One run at a time writes into a run folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cygnet.errors import UserError
from cygnet.train.run_folder import hold

HOLDER = "import sys, time; from pathlib import Path; from cygnet.train.run_folder import hold;"
HOLDER += "hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"


def test_a_second_run_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(run)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout and first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing there"):
            hold(run)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    handle = hold(run)
    with pytest.raises(UserError, match="another run is writing there"):
        hold(run)
    os.close(handle)
    os.close(hold(run))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be written to"):
        hold(tmp_path / "file/run")
