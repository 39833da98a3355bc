#!/bin/bash
# About 200 processes: pipes, subshells, loops, command substitution, background jobs, here documents.
set -eu
sum=0
for i in $(seq 1 20); do
    word=$(echo "$i" | sed 's/^/n/' | tr n N)
    sum=$((sum + $(printf '%s' "$word" | wc -c)))
done
echo "letters $sum"
(for i in 1 2 3 4 5; do (echo "sub $i"; (echo "subsub $i" | cat)); done) | sort | uniq -c | sed 's/^ *//'
for i in $(seq 1 10); do sleep 0.001 & done
wait
echo "jobs done"
while read -r a b; do expr "$a" + "$b"; done <<END
1 2
30 40
500 600
END
seq 1 20000 | sort -r | head -3 | paste -s -d, -
for i in $(seq 1 15); do ls / > /dev/null; true | cat | cat; done
diff <(seq 1 5) <(seq 2 6) || echo "differ $?"
sh -c 'exit 7' || echo "status $?"
{ bash -c 'kill -9 $$'; } 2> /dev/null || echo "status $?"
exec bash -c 'echo "and out"; exit 0'
