import subprocess
import sys

from flamest.base.process import give_back_freed, peak_resident_kb


def test_blocks_are_reused_where_there_is_glibc_and_nothing_breaks_elsewhere():
    code = "from flamest.base.process import reuse_blocks; assert reuse_blocks() in (True, False); b'x' * (20 << 20)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_peak_is_this_programs_own_and_not_what_its_parent_held():
    block = bytes(64 << 20)
    code = "from flamest.base.process import peak_resident_kb; print(peak_resident_kb())"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert len(block) == 64 << 20
    assert 4 << 10 < int(told.stdout) < 60 << 10 < peak_resident_kb()


def test_freed_memory_is_given_back_where_there_is_glibc_and_nothing_breaks_elsewhere():
    assert give_back_freed() in (True, False)
