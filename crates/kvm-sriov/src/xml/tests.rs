use proptest::prelude::*;

use super::fixtures::{ACTION, LIVE, OLD, RICH, SIMPLE, VM, WIRE};
use super::{Deployment, LiveDomain, VmData, Wanted};

proptest! {
    #[test]
    fn damaged_texts_never_panic(
        which in 0_usize..7, at: prop::sample::Index, to: prop::sample::Index,
        insert in "(<|>|/>|'|\"|&|<!--|-->|<!\\[CDATA\\[|\\]\\]>|<devices>|</devices>|<interface><source bridge='sriov_a'/>|\\PC|é)*"
    ) {
        let original = [SIMPLE, RICH, OLD, WIRE, LIVE, VM, ACTION][which];
        let mut text: Vec<char> = original.chars().collect();
        let (at, to) = (at.index(text.len()), to.index(text.len()));
        // Mostly small damage: otherwise hardly any text would get past the parser.
        let end = to.max(at).min(at + to % 8);
        text.splice(at..end, insert.chars());
        let text: String = text.into_iter().collect();
        for text in [text.as_str(), &original[..original.char_indices().nth(at).map_or(0, |(i, _)| i)]] {
            if let Ok(deployment) = Deployment::parse(text) {
                prop_assert!(deployment.sriov_nics().zip(0..).all(|(nic, number)| nic.position.number() == number));
                if deployment.sriov_nics().next().is_none() {
                    prop_assert_eq!(deployment.rewrite(&[], &[], "br").unwrap(), text);
                }
            }
            for error in [
                Deployment::parse(text).err(), LiveDomain::parse(text).err(), VmData::parse(text).err(),
                Wanted::parse(text).err(),
            ].into_iter().flatten() {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
