//! The phrases of lane programs.

use super::*;

impl Parser<'_> {
    pub(super) fn lane(&mut self) -> Parsed<()> {
        self.bump();
        let span = self.token.span;
        let header = self.lane_header();
        let (name, mut program) = match header {
            Ok(header) => header,
            Err(fail) => {
                self.report(fail);
                self.skip_block();
                return Err(Fail::Known);
            }
        };
        let mut regs = HashMap::new();
        self.statements(|p| p.inst(&mut program, &mut regs))?;
        if self.module.lanes.len() >= limits::CONSTS {
            return Err(self.fail_at(span, "limit-lanes", format!("more than {} lane programs", limits::CONSTS)));
        }
        match self.module.lanes.insert(name, program) {
            None => Ok(()),
            Some(_) => Err(self.fail_at(span, "duplicate-name", "this lane program is given twice")),
        }
    }

    fn lane_header(&mut self) -> Parsed<(String, Program)> {
        let name = self.symbol()?;
        let inputs = self.list('(', ')', Self::lane_input)?;
        self.arrow()?;
        let output = self.elem()?;
        if self.token.kind != Kind::Punct('{') {
            return self.unexpected("`{`");
        }
        Ok((name, Program { inputs, insts: Vec::new(), output }))
    }

    fn lane_input(&mut self) -> Parsed<crate::lane::Input> {
        let elem = self.elem()?;
        let span = self.token.span;
        let word = self.word("an access")?;
        let access = Access::WORDS.iter().find(|(_, w)| *w == word).map(|(a, _)| *a);
        let access = access.ok_or_else(|| self.fail_at(span, "syntax", "there is no such access"))?;
        Ok(crate::lane::Input { elem, access })
    }

    pub(super) fn elem(&mut self) -> Parsed<Elem> {
        let span = self.token.span;
        let word = self.word("an element type")?;
        Elem::from_name(word).ok_or_else(|| self.fail_at(span, "syntax", "unknown element type"))
    }

    fn inst(&mut self, program: &mut Program, regs: &mut HashMap<u32, Option<u32>>) -> Parsed<()> {
        let span = self.token.span;
        let number = self.result_number()?;
        if regs.contains_key(&number) {
            return Err(self.fail_at(span, "duplicate-name", format!("%{number} is defined twice")));
        }
        if program.insts.len() >= limits::NODES {
            return Err(self.fail_at(span, "limit-nodes", format!("more than {} instructions", limits::NODES)));
        }
        let (inst, outcome) = split(self.inst_body(regs));
        regs.insert(number, inst.map(|_| program.insts.len() as u32));
        program.insts.extend(inst);
        outcome
    }

    fn inst_body(&mut self, regs: &HashMap<u32, Option<u32>>) -> Parsed<Inst> {
        self.expect('=')?;
        let span = self.token.span;
        let word = self.word("an instruction")?;
        let Some((_, kinds)) = lane::INSTS.iter().find(|(w, _)| *w == word) else {
            return Err(self.fail_at(span, "syntax", "there is no such instruction"));
        };
        let mut args = Vec::with_capacity(kinds.len());
        for (i, kind) in kinds.iter().enumerate() {
            if i > 0 {
                self.expect(',')?;
            }
            args.push(match kind {
                lane::Kind::Reg => self.reg(regs)?,
                lane::Kind::Int => self.int()?,
            });
        }
        lane::build(word, &args).ok_or_else(|| self.fail_at(span, "range", "a number is out of range"))
    }

    fn reg(&mut self, regs: &HashMap<u32, Option<u32>>) -> Parsed<i64> {
        let span = self.token.span;
        let number = self.result_number()?;
        match regs.get(&number) {
            Some(Some(index)) => Ok((*index).into()),
            Some(None) => Err(Fail::Known),
            None => Err(self.fail_at(span, "unknown-name", format!("%{number} is not defined before this"))),
        }
    }
}
