"""`validate` in eight parts at once, each with its own mount of a file system that answers late, as on eight nodes."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.nnunet.faults.processes import ended, forked, half_written
from tests.worlds.trained_fold import Trained

PARTS, CASES = 8, 12
SFTP_SERVER = "/usr/lib/openssh/sftp-server"

# In the place of ssh: an SFTP server on this machine whose answers take three milliseconds more.
LATE_SERVER = f"""#!{sys.executable} -S
import os, subprocess, time
server = subprocess.Popen(["{SFTP_SERVER}"], stdout=subprocess.PIPE)
while answers := os.read(server.stdout.fileno(), 1 << 20):
    time.sleep(0.003)
    while answers:
        answers = answers[os.write(1, answers):]
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("sshfs") and os.path.exists(SFTP_SERVER) and os.access("/dev/fuse", os.W_OK)),
        reason="needs Debian's packages sshfs and openssh-sftp-server, and /dev/fuse",
    ),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def nodes(trained, tmp_path_factory) -> Iterator[list[Trained]]:
    """The trained fold as each node sees it."""
    folder = tmp_path_factory.mktemp("nodes")
    server = folder / "late_server"
    server.write_text(LATE_SERVER)
    server.chmod(0o755)
    mounts = [folder / str(part) for part in range(PARTS)]
    mounted = []
    try:
        for mount in mounts:
            mount.mkdir()
            # names and sizes of files may be twenty seconds old, as SSHFS has them by default
            command = ["sshfs", "-o", f"ssh_command={server}", f"node:{trained.root}", str(mount)]
            result = subprocess.run(command, text=True, capture_output=True, timeout=60)
            if result.returncode:
                pytest.skip(f"nothing can be mounted here: {result.stderr.strip()}")
            mounted.append(mount)
        yield [dataclasses.replace(trained, root=mount) for mount in mounts]
    finally:
        for mount in mounted:
            subprocess.run(["fusermount3", "-u", "-z", mount], check=True)


def add_cases(trained: Trained) -> None:
    """Copy the five cases until there are as many as the test needs; fold "all" validates all there are."""
    for number in range(5, CASES):
        for folder in (trained.preprocessed / "nnUNetPlans_3d_fullres", trained.preprocessed / "gt_segmentations"):
            for path in folder.glob(f"case.{number % 5}[._]*"):
                shutil.copy2(path, path.with_name(path.name.replace(f"case.{number % 5}", f"case.{number}", 1)))
    (trained.fold / "calibration_split.json").unlink()


def validate_there(node: Trained, part: int) -> int:
    """Run a part on a node."""
    os.environ |= {"nnUNet_results": str(node.root / "results"), "nnUNet_preprocessed": str(node.root / "preprocessed")}
    return node.validate("-num_parts", str(PARTS), "-part_id", str(part), "-np", "1")


def test_parts_at_once(trained, nodes, in_threads, tmp_path):
    """All cases are measured, with the bytes of one process on a disk."""
    add_cases(trained)
    trained.without_results()
    assert trained.validate() == 0
    alone = trained.results()
    assert len([name for name in alone if name.endswith(".npz")]) == CASES

    trained.without_results()
    logs = [tmp_path / f"part_{part}" for part in range(PARTS)]
    running = [
        forked(lambda node=node, part=part: validate_there(node, part), logs[part]) for part, node in enumerate(nodes)
    ]
    assert [ended(pid) for pid in running] == [0] * PARTS, "\n".join(log.read_text() for log in logs)
    if not (trained.calibration / "summary.json").exists():  # each of the last ones may miss the others' newest files
        assert trained.validate() == 0
    assert trained.results() == alone
    assert half_written(trained.fold) == []
