/// What is wrong with a `config.json`; names the field, what was expected and what was found.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    #[error("{file} is not a JSON object: {reason}; fetch the file again")]
    NotJson { file: &'static str, reason: String },
    #[error(
        "{file}: field `{field}` is missing, expected {expected}; take {file} from the checkpoint's own repository"
    )]
    Missing { file: &'static str, field: String, expected: &'static str },
    #[error("{file}: field `{field}`: expected {expected}, found {found}")]
    Type { file: &'static str, field: String, expected: &'static str, found: String },
    #[error("{file}: `{field}` is {found}, but only {expected} is supported: this is not a gpt-oss model")]
    Unsupported { file: &'static str, field: String, expected: &'static str, found: String },
    #[error("config.json: impossible `{field}`: expected {expected}, found {found}")]
    Impossible { field: &'static str, expected: String, found: String },
    #[error("the original layout has no field for `{field}`: it means {expected}, this model has {found}")]
    NotOriginal { field: &'static str, expected: String, found: String },
}
