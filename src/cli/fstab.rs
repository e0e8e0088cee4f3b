//! `-o`: options the way fstab and mount(8) write them, turned into flags.
//!
//! `-o spec=4bit,rule=*lm_head*=8bit,allow_other` is `--spec=4bit --rule=*lm_head*=8bit
//! --allow-other`. A backslash before a comma keeps it in the value.

use std::ffi::OsString;

use super::Failure;

/// What mount(8), mount.fuse3 and systemd add by themselves. The mount is read-only without devices,
/// set-uid programs and programs at all, whatever they say.
const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "default_permissions",
    "dev",
    "diratime",
    "exec",
    "group",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "norelatime",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
];

/// The short flags of `mount` beside `-o`.
const LONE_LETTERS: [char; 2] = ['f', 'h'];

/// Replaces every `-o` in the arguments of a mount by the flags that it means.
///
/// # Errors
/// An option that is neither a flag (as `is_flag` knows them) nor one of mount's own.
pub(super) fn expand(args: Vec<OsString>, is_flag: impl Fn(&str) -> bool) -> Result<Vec<OsString>, Failure> {
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        if text == "--" {
            out.push(arg);
            break;
        }
        let Some((letters, list)) = cluster(text) else {
            out.push(arg);
            continue;
        };
        let list = match list {
            "" => args.next().ok_or_else(|| Failure::usage("-o needs a list of options"))?,
            list => OsString::from(list),
        };
        let list = list.to_str().ok_or_else(|| Failure::usage("-o: the options are not UTF-8"))?;
        if !letters.is_empty() {
            out.push(format!("-{letters}").into());
        }
        out.extend(flags(list, &is_flag)?);
    }
    out.extend(args);
    Ok(out)
}

/// `-o`, alone or behind letters that take no value, as in `-fo spec=4bit`: those letters, and the list
/// where it follows at once.
fn cluster(arg: &str) -> Option<(&str, &str)> {
    let (letters, list) = arg.strip_prefix('-')?.split_once('o')?;
    letters.chars().all(|c| LONE_LETTERS.contains(&c)).then_some((letters, list))
}

fn flags(list: &str, is_flag: impl Fn(&str) -> bool) -> Result<Vec<OsString>, Failure> {
    let mut found = Vec::new();
    for option in split(list) {
        let (name, value) = option.split_once('=').map_or((option.as_str(), None), |(name, value)| (name, Some(value)));
        let flag = name.replace('_', "-");
        if is_flag(&flag) {
            let value = value.map_or_else(String::new, |value| format!("={value}"));
            found.push(format!("--{flag}{value}").into());
        } else if !(IGNORED.contains(&name) || name.starts_with("x-") || name == "comment") {
            return Err(Failure::usage(format!(
                "-o {name}: no such option; `quantfs mount --help` lists the flags, which -o takes by name"
            )));
        }
    }
    Ok(found)
}

fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        let kept = c == '\\' && chars.next_if_eq(&',').is_some();
        match options.last_mut() {
            Some(last) if kept || c != ',' => last.push(if kept { ',' } else { c }),
            _ => options.push(String::new()),
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn expanded(args: &[&str]) -> Result<Vec<String>, Failure> {
        let known = |name: &str| ["spec", "rule", "allow-other", "uid"].contains(&name);
        let out = expand(args.iter().map(OsString::from).collect(), known)?;
        Ok(out.into_iter().map(|s| s.into_string().unwrap()).collect())
    }

    #[test]
    fn options_become_flags() {
        let out = expanded(&["src", "mnt", "-o", "ro,spec=4bit,rule=a\\,b=8bit,allow_other", "-orw,dev,suid"]);
        assert_eq!(out.unwrap(), ["src", "mnt", "--spec=4bit", "--rule=a,b=8bit", "--allow-other"]);
        assert_eq!(expanded(&["-o", "x-systemd.automount,nofail,,uid=5"]).unwrap(), ["--uid=5"]);
        assert_eq!(expanded(&["-fo", "spec=8bit", "-ffospec=x"]).unwrap(), ["-f", "--spec=8bit", "-ff", "--spec=x"]);
        assert_eq!(expanded(&["--spec=foo", "-xo", "-f"]).unwrap(), ["--spec=foo", "-xo", "-f"]);
        assert_eq!(expanded(&["a", "--", "-o", "b"]).unwrap(), ["a", "--", "-o", "b"]);
    }

    #[test]
    fn unknown_options_are_named() {
        let failure = expanded(&["-o", "spec=4bit,bogus=1"]).unwrap_err();
        assert_eq!(failure.code(), 2);
        assert!(failure.line().unwrap().contains("-o bogus"), "{failure:?}");
        assert_eq!(expanded(&["-o"]).unwrap_err().code(), 2);
    }
}
