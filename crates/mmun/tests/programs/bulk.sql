-- A table of 20000 rows in one file, an index, a deletion, and what is left of it.
PRAGMA journal_mode = WAL;
PRAGMA mmap_size = 67108864;
CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT, bytes BLOB);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO t SELECT i, 'word' || (i * 7919 % 10007), zeroblob(i % 300) FROM n;
COMMIT;
CREATE INDEX by_word ON t (word);
DELETE FROM t WHERE id % 5 = 0;
VACUUM;
SELECT count(*), sum(length(bytes)), min(word), max(word) FROM t;
SELECT word, count(*) AS c FROM t GROUP BY word ORDER BY c DESC, word LIMIT 3;
PRAGMA integrity_check;
