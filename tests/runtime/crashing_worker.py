"""A worker process that ends in the middle of a clip: by SIGKILL when its file is called ``poison``. Not a test."""

import os
import signal

from flamest.runtime import worker_process
from flamest.runtime.video.clip_reader import ClipReader

read = ClipReader.read


def read_or_end(self, clip):
    if clip.path.name.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, clip)


ClipReader.read = read_or_end

if __name__ == "__main__":
    worker_process.main()
