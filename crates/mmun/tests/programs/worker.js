// Buffers and objects come and go, beside a worker thread and child processes.
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { execSync } = require('child_process');

function churn(turns) {
    let sum = 0;
    for (let turn = 0; turn < turns; turn++) {
        const buffer = new ArrayBuffer(1 << (10 + (turn % 12)));
        new Uint8Array(buffer).fill(turn & 255);
        sum = (sum + new Uint8Array(buffer)[buffer.byteLength - 1]) % 65521;
        const objects = [];
        for (let i = 0; i < 3000; i++) objects.push({ i, text: 'x'.repeat(i % 40) });
        sum = (sum + objects.reduce((all, one) => all + one.text.length, 0)) % 65521;
    }
    return sum;
}

if (isMainThread) {
    const worker = new Worker(__filename);
    worker.on('message', (sum) => {
        console.log('worker', sum);
        console.log('main', churn(60));
        for (let i = 0; i < 3; i++) console.log(execSync(`echo child ${i}`).toString().trim());
    });
    worker.on('exit', (code) => console.log('worker exit', code));
} else {
    parentPort.postMessage(churn(40));
}
