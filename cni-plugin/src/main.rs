//! Reads one CNI request, carries it out, writes one answer.
#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use bulkhead_cni::{command, error::CniError, request::Request, version::SpecVersion};

fn main() -> ExitCode {
    let mut version = SpecVersion::NEWEST;
    let outcome = Request::read(|name| env::var_os(name), io::stdin().lock()).and_then(|request| {
        version = SpecVersion::for_answer(&request.stdin);
        command::run(&request)
    });
    let (answer, code) = match outcome {
        Ok(outcome) => {
            for warning in &outcome.warnings {
                // Nobody is left to tell when standard error is closed.
                let _ = writeln!(io::stderr(), "bulkhead-cni: warning: {warning}");
            }
            (outcome.answer, ExitCode::SUCCESS)
        }
        Err(error) => (Some(error.report(version)), ExitCode::FAILURE),
    };
    match answer.map(print).transpose() {
        Ok(_) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "bulkhead-cni: {}", error.with_causes());
            ExitCode::FAILURE
        }
    }
}

fn print(answer: String) -> Result<(), CniError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all((answer + "\n").as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(CniError::io("writing the answer to standard output"))
}
