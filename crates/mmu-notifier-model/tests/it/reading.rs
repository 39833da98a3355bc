//! What must hold of any text that is read as a trace. Also used by `fuzz/`.

use mmu_notifier_model::{Kernel, Trace, TraceError, replay};
use serde_json::{Map, Value};

/// Either an error that says where, or a trace that can be written, read again and replayed as any kernel.
pub(crate) fn any_text(text: &str) -> Result<(), String> {
    let trace = match Trace::read("any", text) {
        Ok(trace) => trace,
        Err(error) => return says_where(text, &error),
    };
    let written = trace.to_text();
    match Trace::read("any", &written) {
        Ok(again) if again == trace => {}
        Ok(_) => return Err(format!("it reads as another trace when written:\n{text}\n{written}")),
        Err(error) => return Err(format!("it cannot be read when written: {error}\n{written}")),
    }
    let _ = trace.check();
    for kernel in Kernel::ALL {
        replay(&trace, kernel);
    }
    Ok(())
}

fn says_where(text: &str, error: &TraceError) -> Result<(), String> {
    let TraceError { file, line, field, problem } = error;
    let lines: Vec<&str> = text.lines().collect();
    let is_there = file == "any" && (1..=lines.len().max(1)).contains(line) && !problem.is_empty();
    // A line that is an object has a field to blame, unless it is the end that is missing or is not one.
    let is_object =
        || lines.get(line - 1).is_some_and(|line| serde_json::from_str::<Map<String, Value>>(line).is_ok());
    let is_about_the_end = problem.starts_with("the trace ");
    if is_there && (!field.is_empty() || is_about_the_end || !is_object()) {
        return Ok(());
    }
    Err(format!("the error does not say where: {error:?}\nin\n{text}"))
}
