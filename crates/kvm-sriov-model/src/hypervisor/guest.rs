//! Calls that the guest takes part in.

use kvm_sriov::libvirt::{DomainRef, GuestCalls, LibvirtError};

use crate::guest::Guest;
use crate::{Model, refusal};

impl GuestCalls for Model {
    fn set_memory(&self, domain: &DomainRef, kib: u64) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            if kib > domain.definition.memory_kib("memory") {
                return Err(refusal::argument("cannot set memory higher than max memory"));
            }
            domain.definition.set_memory_kib("currentMemory", kib);
            Ok(())
        })
    }

    fn set_vcpus(&self, domain: &DomainRef, number: u32) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            let most = domain.definition.most_vcpus();
            if number > most {
                let text = format!(
                    "requested vcpus is greater than max allowable vcpus for the live domain: {number} > {most}"
                );
                return Err(refusal::argument(text));
            }
            if number < domain.definition.vcpus() && domain.guest == Guest::Silent {
                return Err(refusal::kept_vcpu());
            }
            domain.definition.set_vcpus(number);
            Ok(())
        })
    }

    fn ask_agent(&self, domain: &DomainRef, command: &str) -> Result<String, LibvirtError> {
        let asked: serde_json::Value =
            serde_json::from_str(command).map_err(|error| refusal::argument(error.to_string()))?;
        let arguments = &asked["arguments"];
        let mut world = self.enter()?;
        let number = world.token();
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        match &there.guest {
            Guest::Silent => return Err(refusal::no_agent()),
            Guest::AgentSays(text) => return Ok(text.clone()),
            Guest::AgentRefuses(text) => {
                return Err(refusal::internal(format!("unable to execute QEMU agent command 'guest-exec': {text}")));
            }
            _ => {}
        }
        match asked["execute"].as_str() {
            Some("guest-exec") => {
                let words =
                    std::iter::once(&arguments["path"]).chain(arguments["arg"].as_array().into_iter().flatten());
                let words: Vec<String> = words.map(|word| word.as_str().unwrap_or_default().to_owned()).collect();
                match &words[..] {
                    [kill, _, number] if kill == "kill" => drop(there.commands.remove(&number.parse().unwrap_or(0))),
                    _ => drop(there.commands.insert(number, words)),
                }
                Ok(format!("{{\"return\":{{\"pid\":{number}}}}}"))
            }
            Some("guest-exec-status") => {
                let number = arguments["pid"].as_u64().unwrap_or(0);
                let exited = !there.commands.contains_key(&number);
                Ok(format!("{{\"return\":{{\"exited\":{exited}}}}}"))
            }
            other => {
                let text = format!("unable to execute QEMU agent command '{}': not found", other.unwrap_or_default());
                Err(refusal::internal(text))
            }
        }
    }

    fn sync_time(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.change(domain, |_| Err(refusal::no_agent()))
    }
}
