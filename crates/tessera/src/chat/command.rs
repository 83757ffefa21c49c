//! Lines of a chat that are for the program and not for the model.

use std::path::PathBuf;

use anyhow::bail;
use clap::ValueEnum;

use crate::args::Effort;

pub const HELP: &str = "\
/reset             forget the conversation
/system TEXT       set the instructions; without TEXT, remove them
/reasoning LEVEL   low, medium or high
/save FILE         write the conversation as JSON
/load FILE         go on with a saved conversation
/help              this list
/bye               leave (also /exit, /quit, Ctrl-D)
Ctrl-C stops an answer. A message that begins with a slash: //like this
";

#[derive(Debug, PartialEq)]
pub enum Command {
    Reset,
    /// `None` removes the instructions.
    System(Option<String>),
    Reasoning(Effort),
    Save(PathBuf),
    Load(PathBuf),
    Help,
    Bye,
}

impl Command {
    /// `None` if the line is for the model.
    ///
    /// # Errors
    /// When it is no command that exists, or lacks what the command needs.
    pub fn parse(line: &str) -> anyhow::Result<Option<Self>> {
        if !line.starts_with('/') || line.starts_with("//") {
            return Ok(None);
        }
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let file = || match argument {
            "" => bail!("{name} needs a file name"),
            file => Ok(PathBuf::from(file)),
        };
        let command = match name {
            "/reset" => Self::Reset,
            "/system" => Self::System((!argument.is_empty()).then(|| argument.to_owned())),
            "/reasoning" => match Effort::from_str(argument, true) {
                Ok(effort) => Self::Reasoning(effort),
                Err(_) => bail!("/reasoning needs one of low, medium, high"),
            },
            "/save" => Self::Save(file()?),
            "/load" => Self::Load(file()?),
            "/help" | "/?" => Self::Help,
            "/bye" | "/exit" | "/quit" => Self::Bye,
            _ => bail!("no command {name}; /help lists them"),
        };
        Ok(Some(command))
    }
}

/// The text for the model: `//x` says `/x`.
pub fn message_text(line: &str) -> &str {
    if line.starts_with("//") { &line[1..] } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: Result<Option<Command>, &str>) {
        let got = Command::parse(line).map_err(|error| error.to_string());
        assert_eq!(got, expect.map_err(str::to_owned), "{line}");
    }

    #[test]
    fn commands_are_told_from_messages() {
        check("hello /reset", Ok(None));
        check("//etc is a folder", Ok(None));
        check("/reset", Ok(Some(Command::Reset)));
        check("/system  be brief ", Ok(Some(Command::System(Some("be brief".to_owned())))));
        check("/system", Ok(Some(Command::System(None))));
        check("/reasoning High", Ok(Some(Command::Reasoning(Effort::High))));
        check("/reasoning", Err("/reasoning needs one of low, medium, high"));
        check("/save a b.json", Ok(Some(Command::Save("a b.json".into()))));
        check("/save", Err("/save needs a file name"));
        check("/?", Ok(Some(Command::Help)));
        check("/bye", Ok(Some(Command::Bye)));
        check("/etc", Err("no command /etc; /help lists them"));
        assert_eq!(message_text("//etc is a folder"), "/etc is a folder");
    }
}
