import subprocess
import sys


def test_blocks_are_reused_where_there_is_glibc_and_nothing_breaks_elsewhere():
    code = "from flamest.base.memory import reuse_blocks; assert reuse_blocks() in (True, False); b'x' * (20 << 20)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
