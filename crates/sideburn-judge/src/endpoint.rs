//! A server with OpenAI's interface for chats.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sideburn_http::{Http, HttpConfig, HttpError, Request, is_local};

use crate::{
    chat::{Answer, Chat},
    error::JudgeError,
    question::Question,
    verdict::start_of,
};

/// The longest reply, in bytes.
const MAX_REPLY: u64 = 1 << 20;

const BASE_URL: &str = "OPENAI_BASE_URL";
const MODEL: &str = "OPENAI_MODEL";
const API_KEY: &str = "OPENAI_API_KEY";

/// The key to a server. Nothing shows it: neither `Debug`, nor an error, nor a file.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key.
    ///
    /// # Errors
    /// [`JudgeError::Environment`] if there is a character in it that no HTTP header can carry. Blanks around it are left out.
    pub fn new(key: &str) -> Result<Self, JudgeError> {
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "is no key: it is empty, or holds a blank or a character that is not ASCII".to_owned();
            return Err(JudgeError::Environment { variable: API_KEY, reason });
        }
        Ok(Self(key.to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// Which server is asked, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointConfig {
    /// Where the interface begins, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
    pub base_url: String,
    /// The model, as the server calls it.
    pub model: String,
    /// The key, if the server wants one.
    pub api_key: Option<ApiKey>,
    /// How much chance there is in an answer; none for the server's own. Default: 0. It is left out where a server refuses it.
    pub temperature: Option<f64>,
    /// The most requests in a minute. Default: no limit but the server's.
    pub requests_per_minute: Option<f64>,
    /// Time-outs and retries. Default: two minutes for an answer, six tries, with growing pauses or those that the server asks
    /// for.
    pub http: HttpConfig,
}

impl EndpointConfig {
    /// A server without a key.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            api_key: None,
            temperature: Some(0.0),
            requests_per_minute: None,
            http: HttpConfig { read_timeout: Duration::from_secs(120), ..HttpConfig::default() },
        }
    }

    /// The server that the environment names: `OPENAI_BASE_URL`, `OPENAI_MODEL`, and `OPENAI_API_KEY` where it wants a key.
    /// None of them has a default: dialogues go to no server that was not named.
    ///
    /// # Errors
    /// [`JudgeError::Environment`] if the address or the model is missing, or one of the three is no text.
    pub fn from_env() -> Result<Self, JudgeError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Self, JudgeError> {
        let text = |name: &'static str| match variable(name).map(std::ffi::OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
            Some(Err(_)) => Err(JudgeError::Environment { variable: name, reason: "is not UTF-8".to_owned() }),
        };
        let required = |name: &'static str, what: &str| {
            let missing =
                || JudgeError::Environment { variable: name, reason: format!("is not set; set it to {what}") };
            text(name).and_then(|text| text.ok_or_else(missing))
        };
        let base_url = required(BASE_URL, "the address of a server, such as http://localhost:8000/v1")?;
        let model = required(MODEL, "what the server calls the model, such as gpt-4o-mini")?;
        let api_key = text(API_KEY)?.map(|key| ApiKey::new(&key)).transpose()?;
        Ok(Self { api_key, ..Self::new(base_url, model) })
    }
}

/// A server with OpenAI's interface for chats: OpenAI's own, vLLM, llama.cpp, Ollama and many others.
///
/// An answer is held to [`Question::schema`] by `response_format` where the server knows it. One that refuses it (status 400
/// or 422) is asked without from then on, and what it writes is checked as always. A busy or failing server is asked again
/// after a pause; while it has asked for one (status 429), no other question is asked either.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    url: String,
    http: Http,
    has_schema: AtomicBool,
    has_temperature: AtomicBool,
    /// When the next request may be sent.
    turn: Mutex<Instant>,
}

impl Endpoint {
    /// A server; nothing is sent yet.
    ///
    /// # Errors
    /// [`JudgeError::Environment`] if the address is none, or holds a name and a password; [`JudgeError::Config`] if a number
    /// is out of range; [`JudgeError::Refused`] if the certificates named in the environment cannot be read.
    pub fn new(config: EndpointConfig) -> Result<Self, JudgeError> {
        let base = config.base_url.trim_end_matches('/');
        let wrong = |reason: &str| Err(JudgeError::Environment { variable: BASE_URL, reason: reason.to_owned() });
        let rest = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://"));
        let authority = rest.map(|rest| rest.split('/').next().unwrap_or_default());
        match authority {
            Some(authority) if authority.contains('@') => {
                return wrong("holds a name or a password, which may end in a log; set OPENAI_API_KEY instead");
            }
            Some(authority) if !authority.is_empty() && !base.contains(['?', '#']) => {}
            _ => return wrong("is no address such as https://api.openai.com/v1 or http://localhost:8000/v1"),
        }
        let config_error =
            |field, found: f64, remedy| Err(JudgeError::Config { field, found: found.to_string(), remedy });
        match (config.temperature, config.requests_per_minute) {
            (Some(found), _) if !(0.0..=2.0).contains(&found) => {
                return config_error("temperature", found, "choose from 0 to 2");
            }
            (_, Some(found)) if !(0.01..=1e6).contains(&found) => {
                return config_error("requests_per_minute", found, "choose from 0.01 to 1000000");
            }
            _ => {}
        }
        let http = Http::new(config.http.clone())
            .map_err(|error| JudgeError::Refused { reason: error.to_string(), remedy: "no question was asked" })?;
        Ok(Self {
            url: format!("{base}/chat/completions"),
            http,
            has_schema: AtomicBool::new(true),
            has_temperature: AtomicBool::new(config.temperature.is_some()),
            turn: Mutex::new(Instant::now()),
            config,
        })
    }

    /// What to tell a person before anything is sent: that dialogues, and the key, go over the network unencrypted.
    pub fn warning(&self) -> Option<String> {
        let is_open = self.url.starts_with("http:") && !is_local(&self.url);
        is_open.then(|| {
            let what = if self.config.api_key.is_some() { "dialogues and the key" } else { "dialogues" };
            let url = start_of(&self.config.base_url);
            format!("{url} is not encrypted and not on this machine: {what} can be read on the way; use https")
        })
    }

    fn body(&self, question: &Question, with_schema: bool, with_temperature: bool) -> Value {
        let mut body = json!({
            "model": self.config.model,
            "messages": [
                { "role": "system", "content": question.system },
                { "role": "user", "content": question.user },
            ],
        });
        if let (true, Some(temperature)) = (with_temperature, self.config.temperature) {
            body["temperature"] = temperature.into();
        }
        if with_schema {
            let schema = json!({ "name": "verdict", "strict": true, "schema": Question::schema() });
            body["response_format"] = json!({ "type": "json_schema", "json_schema": schema });
        }
        body
    }

    /// What the server sends, once it has sent something.
    fn send(&self, body: &Value) -> Result<Vec<u8>, HttpError> {
        let mut request = Request::post_json(&self.url, body);
        if let Some(ApiKey(key)) = &self.config.api_key {
            request = request.bearer(key);
        }
        self.http.patiently(
            || {
                self.wait();
                self.http.send(&request)?.bytes(MAX_REPLY)
            },
            |error, pause| {
                if error.status_code() == Some(429) {
                    let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                    *turn = (*turn).max(Instant::now() + pause);
                }
            },
        )
    }

    /// Waits for a turn.
    fn wait(&self) {
        let interval =
            self.config.requests_per_minute.map_or(Duration::ZERO, |most| Duration::from_secs_f64(60.0 / most));
        let turn = {
            let mut next = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + interval;
            turn
        };
        thread::sleep(turn.saturating_duration_since(Instant::now()));
    }

    /// A text of the server without the key, which some servers repeat.
    fn without_key(&self, text: &str) -> String {
        let Some(ApiKey(key)) = &self.config.api_key else { return text.to_owned() };
        let mut text = text.replace(key.as_str(), "(the key)");
        // A text that was cut off may end with a part of it.
        if let Some(part) = (4..key.len()).rev().find(|end| text.ends_with(&key[..*end])) {
            text.truncate(text.len() - part);
        }
        text
    }

    /// What an error means for the questions to come.
    fn failed(&self, error: &HttpError) -> JudgeError {
        let reason = self.without_key(&error.to_string());
        let remedy = match error {
            HttpError::Status { status: 401 | 403, .. } => "look at OPENAI_API_KEY, and at what it may be used for",
            HttpError::Status { status: 404 | 405, .. } => {
                "look at OPENAI_BASE_URL, which often ends in /v1, and OPENAI_MODEL"
            }
            HttpError::Redirect { .. } | HttpError::Url { .. } => "look at OPENAI_BASE_URL",
            HttpError::Broken { .. } if !error.is_transient() => "look at OPENAI_BASE_URL",
            _ => return JudgeError::Unanswered { reason },
        };
        JudgeError::Refused { reason, remedy }
    }

    /// The answer in a reply.
    fn answer(&self, reply: &[u8]) -> Result<Answer, JudgeError> {
        let invalid = |wrong: &str| {
            let start = start_of(&self.without_key(&String::from_utf8_lossy(reply)));
            Err(JudgeError::Invalid { reason: format!("the reply {wrong}: {start:?}") })
        };
        let Ok(reply) = serde_json::from_slice::<Value>(reply) else { return invalid("is not JSON") };
        let message = &reply["choices"][0]["message"];
        if !message.is_object() {
            return invalid("has no `choices[0].message`");
        }
        // What a model says instead of an answer stands beside it. Null is an empty text.
        let text = [&message["content"], &message["refusal"]].into_iter().find_map(Value::as_str).unwrap_or_default();
        let tokens = |name: &str| reply["usage"][name].as_u64().unwrap_or(0);
        Ok(Answer {
            text: self.without_key(text),
            prompt_tokens: tokens("prompt_tokens"),
            completion_tokens: tokens("completion_tokens"),
        })
    }
}

impl Chat for Endpoint {
    fn model(&self) -> &str {
        &self.config.model
    }

    fn identity(&self) -> String {
        let EndpointConfig { model, temperature, .. } = &self.config;
        format!("{} {model} {temperature:?}", self.url)
    }

    fn ask(&self, question: &Question) -> Result<Answer, JudgeError> {
        let mut with_schema = self.has_schema.load(Ordering::Relaxed);
        let mut with_temperature = self.has_temperature.load(Ordering::Relaxed);
        let mut first = None;
        loop {
            let error = match self.send(&self.body(question, with_schema, with_temperature)) {
                Ok(reply) => {
                    // What it did not take this time it will not take the next.
                    self.has_schema.fetch_and(with_schema, Ordering::Relaxed);
                    self.has_temperature.fetch_and(with_temperature, Ordering::Relaxed);
                    return self.answer(&reply);
                }
                Err(error) => error,
            };
            match &error {
                HttpError::Status { status: 400 | 422, message, .. }
                    if with_temperature && message.contains("temperature") =>
                {
                    with_temperature = false;
                }
                HttpError::Status { status: 400 | 422, .. } if with_schema => with_schema = false,
                _ => return Err(self.failed(first.as_ref().unwrap_or(&error))),
            }
            first.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<EndpointConfig, String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        EndpointConfig::from_variables(variable).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_names_the_server() {
        let base = ("OPENAI_BASE_URL", "http://localhost:1/v1");
        let found = config(&[base, ("OPENAI_MODEL", "m"), ("OPENAI_API_KEY", " sk-1 ")]).unwrap();
        assert_eq!((found.model.as_str(), &found.api_key), ("m", &Some(ApiKey("sk-1".to_owned()))));
        assert_eq!(config(&[base, ("OPENAI_MODEL", "m"), ("OPENAI_API_KEY", "")]).unwrap().api_key, None);
        for (variables, said) in [
            (&[][..], "OPENAI_BASE_URL is not set; set it to the address of a server, such as"),
            (&[base], "OPENAI_MODEL is not set"),
            (&[base, ("OPENAI_MODEL", "m"), ("OPENAI_API_KEY", "sk secret")], "OPENAI_API_KEY is no key"),
        ] {
            let message = config(variables).unwrap_err();
            assert!(message.contains(said) && !message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn addresses_are_checked_and_the_open_ones_are_warned_of() {
        let endpoint = |url: &str| Endpoint::new(EndpointConfig::new(url, "m"));
        for url in ["", "localhost:8000", "ftp://host/v1", "http:///v1", "https://host/v1?x=1"] {
            let message = endpoint(url).unwrap_err().to_string();
            assert!(message.contains("OPENAI_BASE_URL is no address such as"), "{url}: {message}");
        }
        let message = endpoint("https://me:secret@host/v1").unwrap_err().to_string();
        assert!(message.contains("a name or a password") && !message.contains("secret"), "{message}");
        for url in ["https://host/v1", "http://localhost:8000/v1", "http://127.0.0.1/v1/", "http://[::1]:80/v1"] {
            assert_eq!(endpoint(url).unwrap().warning(), None, "{url}");
        }
        for url in ["http://host/v1", "http://10.0.0.1:8000/v1", "http://localhost.example.com/v1"] {
            let warning = endpoint(url).unwrap().warning().unwrap();
            assert!(warning.starts_with(&format!("{url} is not encrypted")) && !warning.contains("key"), "{warning}");
        }
        assert_eq!(endpoint("http://host/v1///").unwrap().url, "http://host/v1/chat/completions");
        let bad = |config: EndpointConfig| Endpoint::new(config).unwrap_err().to_string();
        let config = EndpointConfig::new("http://host/v1", "m");
        let message = bad(EndpointConfig { temperature: Some(f64::NAN), ..config.clone() });
        assert_eq!(message, "temperature is NaN; choose from 0 to 2");
        assert!(bad(EndpointConfig { requests_per_minute: Some(0.0), ..config }).contains("requests_per_minute is 0"));
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = Some(ApiKey::new("sk-secret").unwrap());
        let config = EndpointConfig { api_key: key, ..EndpointConfig::new("http://host/v1", "m") };
        let endpoint = Endpoint::new(config).unwrap();
        assert!(!format!("{endpoint:?}").contains("secret"));
        assert!(endpoint.warning().unwrap().contains("dialogues and the key can be read on the way"));
        assert!(!endpoint.identity().contains("secret"));
    }
}
