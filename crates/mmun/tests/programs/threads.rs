//! Vectors of all sizes wander between threads; prints a sum that depends on nothing else.

use std::process::Command;
use std::sync::mpsc;
use std::thread;

fn main() {
    let (send, receive) = mpsc::channel::<Vec<u64>>();
    let makers: Vec<_> = (0..8_u64)
        .map(|number| {
            let send = send.clone();
            thread::spawn(move || {
                for turn in 0..100 {
                    let size = 1 << (turn % 18);
                    let mut block: Vec<u64> = (0..size).map(|i| i * number + turn).collect();
                    block.reserve(size as usize);
                    block.shrink_to_fit();
                    send.send(block).unwrap();
                }
            })
        })
        .collect();
    drop(send);
    let mut sum = 0_u64;
    for block in receive {
        sum = sum.wrapping_add(block.iter().fold(0, |all: u64, one| all.wrapping_add(*one)));
    }
    for maker in makers {
        maker.join().unwrap();
    }
    let child = Command::new("sh").args(["-c", "exit 5"]).status().unwrap();
    println!("{sum} {:?}", child.code());
}
