import pandas, sys
from anita_utils.ablation import effects, arms, results, report
pandas.set_option('display.width',250,'display.max_rows',400,'display.max_columns',30,'display.max_colwidth',60)
a=arms.load_ablation('cpu'); k=results.load_kept('cpu')
print(k.said)
f=k.frame(); f['split']=f['split'].fillna('')
M=[("benchmark/mean","en",""),("benchmark/mean","it","")]+[(f"benchmark/{b}",l,"") for l in("en","it") for b in("arc","hellaswag","mmlu","truthfulqa","winogrande","gsm8k")]+[("chat/accuracy","en","seen"),("chat/accuracy","en","unseen_as_chat"),("chat/accuracy","it","adapted"),("chat/accuracy","it","never_in_italian"),("chat/accuracy_in_language","en","seen"),("chat/accuracy_in_language","it","adapted"),("chat/accuracy_in_language","it","never_in_italian"),("language_fidelity","it",""),("language_fidelity","en",""),("refusal/harmful","all","held_out_wordings"),("refusal/harmful","all","held_out_topics"),("refusal/harmless","all","held_out_wordings"),("refusal/harmless","all","held_out_topics"),("perplexity","en",""),("perplexity","it",""),("preference_accuracy_logprob","all",""),("preference_accuracy","all",""),("minimal_pairs","en",""),("minimal_pairs","it",""),("chat/accuracy","en","new_kinds"),("train/tokens","all","")]
A=["base","sft","italian","dpo","sft_italian","sft_dpo","italian_dpo","summary","journal","no_replay","rank_8","unquantised","text_only","text_only_gentle","text_only_rank_8","long_dpo"]
rows=[]
for m,l,s in M:
    g=f[(f.metric==m)&(f.language==l)&(f.split==s)]
    rows.append([f"{m} {l} {s}"]+[round(g[g.arm==x].value.mean(),3) if len(g[g.arm==x]) else None for x in A])
print(pandas.DataFrame(rows,columns=["m"]+[x[:9] for x in A]).to_string())
sd=f.groupby(['arm','metric','language','split']).value.std()
try:
    t=effects.claims_table(k.measured, a.claims); print(t.to_string()); print(t.verdict.value_counts())
except Exception as e: print(repr(e))
