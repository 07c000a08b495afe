import json
def lines(s):
    out=s.split('\n'); return [l+'\n' for l in out[:-1]]+[out[-1]]
class NB:
    def __init__(s,p): s.p=p; s.nb=json.load(open(p))
    def cell(s,id): return next(c for c in s.nb['cells'] if c.get('id')==id)
    def set(s,id,text): s.cell(id)['source']=lines(text)
    def sub(s,id,*prs):
        c=s.cell(id); t=''.join(c['source'])
        for a,b in prs:
            assert t.count(a)==1,(id,a,t.count(a)); t=t.replace(a,b)
        c['source']=lines(t)
    def after(s,id,new,kind,text):
        i=s.nb['cells'].index(s.cell(id))
        c={"cell_type":kind,"id":new,"metadata":{},"source":lines(text)}
        if kind=='code': c={"cell_type":kind,"execution_count":None,"id":new,"metadata":{},"outputs":[],"source":lines(text)}
        s.nb['cells'].insert(i+1,c)
    def save(s):
        with open(s.p,'w') as f: json.dump(s.nb,f,indent=1,ensure_ascii=False); f.write('\n')
