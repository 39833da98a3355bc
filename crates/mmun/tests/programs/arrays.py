# Large arrays come and go, in threads.
import threading

import numpy

sums = [0] * 4


def work(number):
    for turn in range(20):
        size = 100_000 + 70_000 * (turn % 5) + number
        one = numpy.arange(size, dtype=numpy.float64)
        two = numpy.ones(size) * number
        one = numpy.concatenate([one, two])[::2] + 1.0
        one.resize(size // 3, refcheck=False)
        sums[number] += int(one.sum()) % 1_000_003


threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
small = numpy.random.default_rng(7).random((200, 200))
print(sums, round(float(numpy.linalg.norm(small @ small)), 6))
