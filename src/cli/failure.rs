//! Why a verb ended without doing what it was asked: one line, and an exit code.

use std::{error::Error, io};

use crate::{bulk, plan};

/// Exit code of a command line that makes no sense.
const USAGE: u8 = 2;

/// Exit code of everything else that went wrong.
const FAILED: u8 = 1;

/// An error on its way to the user. Any error becomes one.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    line: String,
    broken_pipe: bool,
}

impl Failure {
    /// What was asked for cannot be done, with the reason and what to do.
    #[must_use]
    pub fn refused(why: impl Into<String>) -> Self {
        Self { code: FAILED, line: why.into(), broken_pipe: false }
    }

    /// The command line makes no sense.
    #[must_use]
    pub fn usage(why: impl Into<String>) -> Self {
        Self { code: USAGE, line: why.into(), broken_pipe: false }
    }

    /// What another process of ours failed with.
    #[must_use]
    pub fn passed_on(code: u8, line: String) -> Self {
        Self { code: code.max(FAILED), line, broken_pipe: false }
    }

    /// The same, said of one of several things.
    #[must_use]
    pub fn of(self, what: &str) -> Self {
        Self { line: format!("{what}: {}", self.line), ..self }
    }

    /// 1 or 2; 0 where nobody listens any more, as when the output is piped into `head`.
    #[must_use]
    pub fn code(&self) -> u8 {
        if self.broken_pipe { 0 } else { self.code }
    }

    /// What to print; `None` where nobody listens any more.
    #[must_use]
    pub fn line(&self) -> Option<&str> {
        (!self.broken_pipe).then_some(&self.line)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: &(dyn Error + 'static) = &error;
        let of_plan = match error.downcast_ref() {
            Some(bulk::Error::Plan(why)) => Some(why),
            _ => error.downcast_ref(),
        };
        let usage = of_plan.is_some_and(plan::Error::is_usage);
        let broken_pipe = error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
        Self { code: if usage { USAGE } else { FAILED }, line: line_of(error), broken_pipe }
    }
}

/// The message and its causes in one line; a cause that the message quotes already is not repeated.
fn line_of(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{path}: cannot read")]
    struct Outer {
        path: &'static str,
        source: io::Error,
    }

    #[test]
    fn causes_are_told_once_and_in_one_line() {
        let failure = Failure::from(Outer { path: "x", source: io::Error::other("no\nluck") });
        assert_eq!((failure.line(), failure.code()), (Some("x: cannot read: no luck"), 1));
        let quoted = Failure::from(plan::Error::Spec("unknown spec `9bit`".into()));
        assert_eq!((quoted.line(), quoted.code()), (Some("unknown spec `9bit`"), 2));
    }

    #[test]
    fn a_broken_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.line(), failure.code()), (None, 0));
    }
}
