//! The registration cache, seen from outside.

mod changes;
mod device;
mod errors;
mod forks;
mod hits;
mod hole;
mod kdreg2;
mod libfabric;
mod limits;
mod model;
mod races;
mod real;
mod rust_vmm;
mod tokens;
mod ucx;
mod waiting;
