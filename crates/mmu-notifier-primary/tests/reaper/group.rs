//! A control group with a limit, made and removed by the test.
