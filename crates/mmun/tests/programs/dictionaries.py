# Makes and drops dictionaries, lists and byte strings, in threads and in child processes.
import hashlib
import mmap
import os
import subprocess
import threading

found = {}


def churn(number):
    digest = hashlib.sha256()
    for turn in range(12):
        table = {f"{number}-{i}": [i] * (i % 50) for i in range(8000)}
        for i in range(0, 8000, 3):
            del table[f"{number}-{i}"]
        digest.update(repr(sum(len(value) for value in table.values())).encode())
        blob = bytearray(1 << (12 + turn))
        blob[::4096] = bytes(len(blob) // 4096)
        pages = mmap.mmap(-1, 1 << 20)
        pages[:5] = b"hello"
        pages.madvise(mmap.MADV_DONTNEED)
        pages.close()
    found[number] = digest.hexdigest()[:16]


threads = [threading.Thread(target=churn, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for number in sorted(found):
    print(number, found[number])
for status in range(3):
    child = os.fork()
    if child == 0:
        churn(9)
        os._exit(status)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(subprocess.run(["echo", "from a child"], capture_output=True, text=True).stdout.strip())
