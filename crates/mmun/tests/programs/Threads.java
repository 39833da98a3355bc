// Garbage, direct buffers and mapped files in four threads.

import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

public final class Threads {
    private static long work(int number) throws Exception {
        long sum = 0;
        Path file = Files.createTempFile("mmun", "java");
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            for (int turn = 0; turn < 50; turn++) {
                ByteBuffer direct = ByteBuffer.allocateDirect(100_000 + turn);
                direct.putInt(turn, number + turn);
                sum += direct.getInt(turn);
                ByteBuffer mapped = channel.map(FileChannel.MapMode.READ_WRITE, 0, 8192);
                mapped.putLong(0, sum);
                sum += mapped.getLong(0) % 1000;
                byte[][] garbage = new byte[200][];
                for (int i = 0; i < garbage.length; i++) {
                    garbage[i] = new byte[1000 * (i % 30)];
                    sum += garbage[i].length;
                }
            }
        } finally {
            Files.delete(file);
        }
        return sum;
    }

    public static void main(String[] args) throws Exception {
        long[] sums = new long[4];
        Thread[] threads = new Thread[sums.length];
        for (int i = 0; i < threads.length; i++) {
            int number = i;
            threads[i] = new Thread(() -> {
                try {
                    sums[number] = work(number);
                } catch (Exception e) {
                    throw new RuntimeException(e);
                }
            });
            threads[i].start();
        }
        for (int i = 0; i < threads.length; i++) {
            threads[i].join();
            System.out.println(i + " " + sums[i]);
        }
        System.gc();
        Process child = new ProcessBuilder("sh", "-c", "exit 3").start();
        System.out.println("child " + child.waitFor());
    }
}
